"""What a sweep found: curves over sigma, and their differences on common chips."""

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
from nft_ext.montecarlo.report.text import align

FORMAT = "nft_ext.sweep/1"
COMPARED = "on common chips: this compares these checkpoints, not the methods that trained them"


@dataclass
class Curve:
    """One network on one device.

    Attributes:
        name: of network and device together.
        model_name, device_name: of each; "" where it has none.
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
    """What `sweep` found; `str(sweep)` is a table of all curves.

    Attributes:
        curves: one per network and device.
        interrupted: True if stopped before the last point.
    """

    curves: list[Curve]
    interrupted: bool = field(default=False)

    @property
    def reports(self) -> dict[str, list[MonteCarloReport]]:
        """name -> reports, of the curves that have any."""
        return {curve.name: curve.reports for curve in self.curves if curve.reports}

    def curve(self, name: str) -> list[MonteCarloReport]:
        """The reports of the curve called `name`.

        Raises:
            ValueError: an unknown name.
        """
        return self.reports[one_of("name", name, self.reports)]

    def paired(self, a: str, b: str, metric: str = "accuracy") -> dict[float, Paired]:
        """Curve `a` minus curve `b` chip by chip: sigma -> mean, interval, t test and Wilcoxon's signed rank test.

        Of every sigma that both have, over the chips that both have. The replicates are chips: the outcome speaks about
        these two checkpoints over all chips of their device. It does not speak about the methods that trained them;
        that takes several trainings of each (`nft.metrics.compare_methods`). Chips on which a metric has no value (EKL
        with nothing right) are left out. Under "stratified" a chip's two figures are on the same slice. The interval is
        then too wide rather than too narrow, as whole tilings vary less than independent slices.

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
            x, y = (report._statistic(metric).per_run[: min(one.runs, other.runs)] for report in (one, other))
            both = ~np.isnan(x) & ~np.isnan(y)
            if both.sum() >= 2:
                found[one.sigma] = paired(x[both], y[both])
        return found

    def table(self) -> str:
        """Mean accuracy of all curves, one row a sigma."""
        return sweep_table(self.reports)

    __str__ = table

    def differences_table(self, baseline: str | None = None) -> str:
        """Every other curve minus `baseline` (default: the first), in points of accuracy, with tests."""
        baseline = next(iter(self.reports)) if baseline is None else baseline
        self.curve(baseline)
        rows = [["curve", "sigma", "difference, points", "+- 95 %", "t test p", "Wilcoxon p", "chips"]]
        for name in self.reports:
            for sigma, d in self.paired(name, baseline).items() if name != baseline else ():
                rows.append(
                    [
                        name,
                        f"{sigma:g}",
                        f"{100 * d.mean:+.3f}",
                        f"{100 * d.ci95:.3f}",
                        *("-" if d.ci95 == 0 else f"{p:.2g}" for p in (d.p_t, d.p_wilcoxon)),
                        str(d.n),
                    ]
                )
        # Without noise all chips are one: a difference without a spread, and nothing to test.
        return "\n".join([f"accuracy minus that of {baseline}, {COMPARED}", *align(rows)])

    def plot(self, path: str | os.PathLike, title: str = "Accuracy over programmed chips") -> None:
        """Writes a figure: one line per curve over sigma, with 95 % bands; PNG, PDF or SVG by the suffix of `path`.

        Raises:
            ImportError: matplotlib is missing; the message has the command that installs it.
        """
        plot_sweep(self.reports, path, title)

    def to_csv(self, path: str | os.PathLike) -> None:
        """Writes one row a point; accuracies are fractions, std is over chips."""
        names = sorted({name for reports in self.reports.values() for report in reports for name in report.statistics})
        figures = ("mean", "ci95", "std")
        rows = [
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
                found = [repr(getattr(report.statistics[name], figure)) for name in names for figure in figures]
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
        """Everything, as JSON takes it: the reports whole, and every curve's differences from the first."""
        first = next(iter(self.reports), None)
        differences = [
            {"curve": name, "baseline": first, "sigma": sigma, "metric": "accuracy", **finite_or_none(vars(d))}
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
            "curves": curves,
            "differences": differences,
            "differences_are": COMPARED,
        }

    def to_json(self, path: str | os.PathLike) -> None:
        """Writes `to_dict()` to a file."""
        write_json(path, self.to_dict(), strict=True)
