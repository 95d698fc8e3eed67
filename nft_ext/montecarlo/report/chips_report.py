"""The report of `over_chips`: figures of a function of the model, with intervals over chips."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field, fields
from typing import Any

from nft_ext._common.checked_json import intact, with_checksum
from nft_ext._common.checks import fail, one_of
from nft_ext._common.files import finite_or_none, write_csv, write_json
from nft_ext._common.reading import read_json
from nft_ext.montecarlo.report.figure_style import COLOURS, INK, STYLE, require_matplotlib, save_figure
from nft_ext.montecarlo.report.metrics import Metrics
from nft_ext.montecarlo.report.report import conditions_of, sigma_of
from nft_ext.montecarlo.report.statistic_json import statistic_entry, statistic_of
from nft_ext.montecarlo.report.text_table import QUANTILES, align, note_lines, rough_notes, unseen_line
from nft_ext.montecarlo.statistics.intervals import unseen_share
from nft_ext.montecarlo.statistics.run_statistic import RunStatistic

FORMAT = "nft_ext.over_chips/1"
WHOLE = "must be a whole report of over_chips, written by to_json"


@dataclass(frozen=True, eq=False)
class ChipsReport:
    """The outcome of `over_chips`. `str(report)` is a table.

    Attributes:
        statistics: name of a figure -> RunStatistic. `metrics` is the same mapping.
        function: name of the function.
        runs: number of chips. Run r is chip r of `seed`, key domain "evaluation".
        seed: seed of the chips.
        nvm: one entry per distinct device: {"device": NVMDevice.describe(), "text", "layers"}, with the sigma used.
        hardware: name of the torch device.
        seconds: wall time.
        interrupted: True if the evaluation stopped early.
        notes: remarks that a reader of the figures needs.
        versions: name -> version.
        stopping: target_ci, metric, reached (bool), pilot_runs, min_runs, max_runs; None without a target.
    """

    statistics: dict[str, RunStatistic]
    function: str
    runs: int
    seed: int
    nvm: list[dict[str, Any]]
    hardware: str
    seconds: float
    interrupted: bool = False
    notes: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    stopping: dict[str, Any] | None = None

    @property
    def metrics(self) -> Metrics[RunStatistic]:
        """Name of a figure -> its statistic, with `.per_run`, `.mean`, `.std` and `.ci95`.

        The name is "value" if the function returns one number.
        """
        return Metrics(self.statistics)

    @property
    def unseen_chips(self) -> float:
        """At most this share of all chips is unlike every evaluated chip, with 95 % confidence.

        It is 1 - 0.05^(1/runs). No interval of the report contains the effect of such chips.
        """
        return unseen_share(self.runs)

    @property
    def sigma(self) -> float | list[float]:
        """The sigma used; a sorted list of distinct values if layers differ."""
        return sigma_of(self.nvm)

    def conditions(self) -> str:
        """Device, sigma with its unit, M and K, in words. One part per distinct device."""
        return conditions_of(self.nvm)

    def table(self) -> str:
        """The report as a text table."""
        lines = [
            f"{self.function} over {self.runs} programmed chips" + (" (interrupted)" if self.interrupted else ""),
            f"  noise     {self.conditions()}",
            f"  chips     seed {self.seed}, draws 0 .. {self.runs - 1}",
            f"  computed  on {self.hardware}, {self.seconds:.1f} s",
            "",
        ]
        rows = [["", "mean", "+- 95 %", "std", *(f"q{100 * q:g} %" for q in QUANTILES), "worst"]]
        for name, found in self.statistics.items():
            figures = [found.mean, found.ci95, found.std, *(found.quantile(q) for q in QUANTILES), found.worst]
            rows.append([name, *(f"{float(figure):.5g}" for figure in figures)])
        lines += ["  " + line for line in align(rows)]
        lines += ["  +- 95 %: mean over chips of this network", "  " + unseen_line(self)]
        for note in [*rough_notes(self), *self.notes]:
            lines += note_lines(note)
        return "\n".join(lines)

    __str__ = table

    def plot(self, path: str | os.PathLike, metric: str | None = None) -> None:
        """Writes a histogram of one figure over the chips, with its mean and interval.

        Args:
            path: the file; its suffix selects PNG, PDF or SVG.
            metric: name of the figure. None: the first.

        Raises:
            ImportError: matplotlib is not installed.
            ValueError: no such figure.
        """
        name = next(iter(self.statistics)) if metric is None else one_of("metric", metric, self.statistics)
        found, matplotlib = self.statistics[name], require_matplotlib()
        with matplotlib.rc_context(STYLE):
            figure = matplotlib.figure.Figure(figsize=(7.2, 3.6), layout="constrained")
            axes = figure.subplots()
            axes.hist(found.per_run, bins="auto", color=COLOURS[0], alpha=0.55, edgecolor="white", linewidth=0.6)
            axes.axvspan(*found.interval, color=INK, alpha=0.15, linewidth=0)
            axes.axvline(found.mean, color=INK, linewidth=1.2)
            axes.set(xlabel=f"{name} of a chip", ylabel="chips")
            axes.yaxis.get_major_locator().set_params(integer=True)
            title = f"{self.function} over {self.runs} programmed chips, seed {self.seed}: "
            axes.set_title(f"{title}{found.mean:.5g} ± {found.ci95:.2g}\n{self.conditions()}", fontsize=10, loc="left")
            save_figure(figure, path)

    def to_csv(self, path: str | os.PathLike) -> None:
        """Writes one row per chip: run, seed, sigma, then the figures."""
        sigma = " ".join(map(repr, self.sigma)) if isinstance(self.sigma, list) else self.sigma
        columns = [s.per_run.tolist() for s in self.statistics.values()]
        rows = [[run, self.seed, sigma, *map(repr, row)] for run, row in enumerate(zip(*columns))]
        write_csv(path, [["run", "seed", "sigma", *self.statistics], *rows])

    def to_dict(self) -> dict[str, Any]:
        """The whole report as JSON values: floats exactly, NaN and infinities as None."""
        content: dict[str, Any] = {"format": FORMAT, "conditions": self.conditions()}
        content |= {f.name: getattr(self, f.name) for f in fields(self) if f.name != "statistics"}
        content["unseen_chips"] = self.unseen_chips
        content["metrics"] = {name: statistic_entry(s) for name, s in self.statistics.items()}
        return finite_or_none(content)

    def to_json(self, path: str | os.PathLike) -> None:
        """Writes `to_dict()` and a checksum to a file, atomically."""
        write_json(path, with_checksum(self.to_dict()), strict=True)

    @classmethod
    def from_json(cls, path: str | os.PathLike) -> ChipsReport:
        """Reads a file that `to_json` wrote.

        Raises:
            FileNotFoundError: no such file.
            ValueError: the file is damaged or of another kind.
        """
        content = read_json("path", path, WHOLE.removeprefix("must be "))
        if content.get("format") != FORMAT or not intact(content):
            found = content.get("format")
            fail("path", WHOLE, f"{path}: " + (f"format {found}" if found != FORMAT else "another checksum"))
        try:
            entries = {name: _with_nan(entry) for name, entry in content["metrics"].items()}
            statistics: Any = {name: statistic_of(entry) for name, entry in entries.items()}
            rest = {f.name: content[f.name] for f in fields(cls) if f.name != "statistics"}
            return cls(statistics=statistics, **rest)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            fail("path", WHOLE, f"{path}: a damaged entry ({error})")


def _with_nan(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry with NaN in place of null."""
    return {key: math.nan if value is None else value for key, value in entry.items()}
