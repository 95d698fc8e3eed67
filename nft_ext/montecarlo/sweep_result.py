"""The outcome of a sweep: curves over sigma, and their differences on common chips."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import nn

from nft_ext._common.checks import fail, one_of
from nft_ext._common.files import finite_or_none, write_csv, write_json
from nft_ext.metrics import Paired, paired
from nft_ext.montecarlo.report.curves import sweep_table
from nft_ext.montecarlo.report.report import MonteCarloReport
from nft_ext.montecarlo.report.sweep_plot import plot_sweep
from nft_ext.montecarlo.report.text_table import align, note_lines, shown

FORMAT = "nft_ext.sweep/1"
COMPARED = "on common chips: this compares these checkpoints, not the methods that trained them"


@dataclass
class Curve:
    """One network on one device.

    Attributes:
        name: name of network and device together.
        model_name, device_name: name of each; "" without one.
        model: the converted network.
        reports: one per sigma, in the order given.
    """

    name: str
    model_name: str
    device_name: str
    model: nn.Module
    reports: list[MonteCarloReport]


@dataclass
class Sweep:
    """The outcome of `sweep`. `str(sweep)` is a table of all curves.

    Attributes:
        curves: one per network and device.
        interrupted: True if the sweep stopped before its last point.
        notes: remarks that a reader needs, such as curves that do not share all chips.
    """

    curves: list[Curve]
    interrupted: bool = field(default=False)
    notes: list[str] = field(default_factory=list)

    @property
    def reports(self) -> dict[str, list[MonteCarloReport]]:
        """name -> reports, without empty curves."""
        return {curve.name: curve.reports for curve in self.curves if curve.reports}

    def curve(self, name: str) -> list[MonteCarloReport]:
        """The reports of the curve called `name`.

        Raises:
            ValueError: an unknown name.
        """
        return self.reports[one_of("name", name, self.reports)]

    def paired(self, a: str, b: str, metric: str | None = None) -> dict[float, Paired]:
        """Compares two curves chip by chip, at every sigma and on every chip that both have.

        The replicates are chips: the outcome speaks about these two checkpoints over all chips of their device. It does
        not speak about the methods that trained them; that needs several trainings per method
        (`nft.metrics.compare_methods`). Chips without a value (EKL without correct images) are left out. Under
        "stratified" both figures of a chip are on the same slice. The interval is then slightly too wide, because whole
        tilings vary less than independent slices.

        Args:
            a, b: names of two curves.
            metric: name of a metric; None: the first one.

        Returns:
            sigma -> a minus b: mean, interval, t test and Wilcoxon's signed rank test.

        Raises:
            ValueError: an unknown name, or slices that differ between the two.
        """
        found = {}
        others = {report.sigma: report for report in self.curve(b)}
        for one in self.curve(a):
            other = others.get(one.sigma)
            if other is None:
                continue
            if one.slice_images != other.slice_images:
                fail("slice_images", "must be the same for both curves", f"{one.slice_images} and {other.slice_images}")
            name = one.first if metric is None else metric
            x, y = (report._statistic(name).per_run[: min(one.runs, other.runs)] for report in (one, other))
            both = ~np.isnan(x) & ~np.isnan(y)
            if both.sum() >= 2:
                found[one.sigma] = paired(x[both], y[both])
        return found

    def table(self) -> str:
        """Mean of the first metric of all curves as text, one row per sigma."""
        return "\n".join([sweep_table(self.reports), *self._notes()])

    __str__ = table

    def differences_table(self, baseline: str | None = None) -> str:
        """Every other curve minus `baseline` (None: the first curve) as text, with tests, for the first metric.

        Percentages differ by points.
        """
        baseline = next(iter(self.reports)) if baseline is None else baseline
        self.curve(baseline)
        how = shown(self.curve(baseline)[0].first)
        difference = "difference, points" if how.unit else "difference"
        decimals = how.decimals + 1
        rows = [["curve", "sigma", difference, "+- 95 %", "t test p", "Wilcoxon p", "chips"]]
        for name in self.reports:
            for sigma, d in self.paired(name, baseline).items() if name != baseline else ():
                rows.append(
                    [
                        name,
                        f"{sigma:g}",
                        f"{how.factor * d.mean:+.{decimals}f}",
                        f"{how.factor * d.ci95:.{decimals}f}",
                        *("-" if d.ci95 == 0 else f"{p:.2g}" for p in (d.p_t, d.p_wilcoxon)),
                        str(d.n),
                    ]
                )
        # Without noise all chips are equal, so the interval is 0 and there is no p-value.
        return "\n".join([f"{how.label} minus that of {baseline}, {COMPARED}", *align(rows), *self._notes()])

    def _notes(self) -> list[str]:
        return [line for note in self.notes for line in note_lines(note)]

    def plot(self, path: str | os.PathLike, title: str | None = None) -> None:
        """Writes a figure of all curves over sigma with 95 % bands.

        Args:
            path: the file; its suffix selects PNG, PDF or SVG.
            title: first line of the figure; None: the first metric over programmed chips.

        Raises:
            ImportError: matplotlib is not installed. The message has the command that installs it.
        """
        label = shown(next(iter(self.reports.values()))[0].first).label if self.reports else "metrics"
        plot_sweep(self.reports, path, title or f"{label[0].upper()}{label[1:]} over programmed chips")

    def to_csv(self, path: str | os.PathLike) -> None:
        """Writes one row per point. Accuracies are fractions, and std is over chips. Absent metrics are empty."""
        names = sorted({name for reports in self.reports.values() for report in reports for name in report.statistics})
        figures = ("mean", "ci95", "std")
        rows: list[list[Any]] = [
            [
                "model",
                "device",
                "sigma",
                "seed",
                "runs",
                "images",
                "slice_images",
                "interrupted",
                *(f"{name}_{figure}" for name in names for figure in figures),
                "ece",
            ]
        ]
        for curve in self.curves:
            for report in curve.reports:
                found = [
                    repr(getattr(report.statistics[name], figure)) if name in report.statistics else ""
                    for name in names
                    for figure in figures
                ]
                device = curve.device_name or report.nvm[0]["device"]["name"]
                rows.append(
                    [
                        curve.model_name,
                        device,
                        repr(report.sigma),
                        report.seed,
                        report.runs,
                        report.images,
                        report.slice_images or report.images,
                        report.interrupted,
                        *found,
                        repr(report.ece),
                    ]
                )
        write_csv(path, rows)

    def to_dict(self) -> dict[str, Any]:
        """The whole sweep as JSON values: all reports, and every curve's differences from the first curve."""
        first = next(iter(self.reports), "")
        differences = [
            {
                "curve": name,
                "baseline": first,
                "sigma": sigma,
                "metric": self.curve(first)[0].first,
                **finite_or_none(vars(d)),
            }
            for name in self.reports
            if name != first
            for sigma, d in self.paired(name, first).items()
        ]
        curves = [
            {
                "name": curve.name,
                "model": curve.model_name,
                "device": curve.device_name,
                "reports": [report.to_dict() for report in curve.reports],
            }
            for curve in self.curves
        ]
        return {
            "format": FORMAT,
            "interrupted": self.interrupted,
            "notes": self.notes,
            "curves": curves,
            "differences": differences,
            "differences_are": COMPARED,
        }

    def to_json(self, path: str | os.PathLike) -> None:
        """Writes `to_dict()` to a file."""
        write_json(path, self.to_dict(), strict=True)
