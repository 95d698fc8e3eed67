"""Reports as aligned text tables."""

from __future__ import annotations

import math
import re
import textwrap
from dataclasses import dataclass

from nft_ext._common.coverage_line import coverage_line
from nft_ext.montecarlo.statistics.slice_estimate import LEAST_DF
from nft_ext.montecarlo.statistics.slice_statistic import WHY_ABSENT, SliceStatistic

WIDTH = 96
QUANTILES = (0.05, 0.5, 0.95)
# metric name -> (name in texts, factor to its unit, unit, decimals)
_SHOWN = {
    "accuracy": ("accuracy", 100.0, "%", 2),
    "ekl": ("EKL", 1.0, "", 4),
    "nll": ("NLL", 1.0, "", 4),
    "ece": ("calibration error", 1.0, "", 4),
    "token_accuracy": ("token accuracy", 100.0, "%", 2),
    "perplexity": ("perplexity", 1.0, "", 3),
    "miou": ("mean IoU", 100.0, "%", 2),
    "mse": ("squared error", 1.0, "", 4),
    "mae": ("absolute error", 1.0, "", 4),
    "r2": ("R2", 1.0, "", 4),
}
_TOP = re.compile(r"top(\d+)")
_DIGITS = 4  # significant digits of a figure that its decimals would not show


@dataclass(frozen=True)
class Shown:
    """How a metric is written.

    Attributes:
        label: its name in texts.
        factor: its value times this is in the unit.
        unit: "%" or "".
        decimals: digits after the point.
    """

    label: str
    factor: float = 1.0
    unit: str = ""
    decimals: int = 4

    def number(self, value: float, sign: str = "") -> str:
        """The value in its unit, without the unit; "-" for NaN."""
        if math.isnan(value):
            return "-"
        value = self.factor * value
        if value and not self.unit and abs(value) < 10 * 10**-self.decimals:
            return f"{value:{sign}.{_DIGITS}g}"
        rounds_to_zero = 0 < abs(value) < 0.5 * 10**-self.decimals
        return f"{value:{sign}.1g}" if rounds_to_zero else f"{value:{sign}.{self.decimals}f}"

    @property
    def title(self) -> str:
        """Name and unit."""
        return f"{self.label}, {self.unit}" if self.unit else self.label

    @property
    def behind(self) -> str:
        """The unit behind a number."""
        return f" {self.unit}" if self.unit else ""


def shown(name: str) -> Shown:
    """How the metric called `name` is written."""
    if name in _SHOWN:
        return Shown(*_SHOWN[name])
    top = _TOP.fullmatch(name)
    return Shown(name) if top is None else Shown(f"top-{top[1]} accuracy", 100.0, "%", 2)


def align(rows: list[list[str]]) -> list[str]:
    """Formats rows of cells as lines: the first column flush left, the others flush right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths))).rstrip()
        for row in rows
    ]


def images_per_chip(report) -> str:
    """The number of images, or of other examples, per chip, in words."""
    number = f"{report.images}" if report.slice_images is None else f"{report.slice_images} of {report.images}"
    return f"{number} {report.example}s"


def report_table(report) -> str:
    """The table of `MonteCarloReport.table`."""
    lines = [
        f"Monte Carlo over programmed chips: {report.runs} chips x {images_per_chip(report)}"
        + (" (interrupted)" if report.interrupted else ""),
        f"  noise     {report.conditions()}",
        f"  chips     seed {report.seed}, draws 0 .. {report.runs - 1}, protocol {report.protocol}",
        f"  computed  {report.precision} on {report.hardware}, {report.chips_per_pass} chip(s) per pass, "
        f"batch {report.batch_size}, {report.seconds:.1f} s "
        f"({report.images_evaluated / max(report.seconds, 1e-9):,.0f} {report.example}s/s)",
    ]
    if report.coverage is not None:
        line = coverage_line(report.coverage)
        lines += textwrap.wrap(f"weights   {line}", WIDTH, initial_indent="  ", subsequent_indent=" " * 12)
    lines.append("")
    sliced = any(isinstance(statistic, SliceStatistic) for statistic in report.statistics.values())
    lines += _of_slices(report) if sliced else _of_whole_sets(report)
    for note in [*rough_notes(report), *report.notes]:
        lines += note_lines(note)
    return "\n".join(lines)


def note_lines(note: str) -> list[str]:
    """A note as indented lines."""
    return textwrap.wrap(f"note: {note}", WIDTH, initial_indent="  ", subsequent_indent="        ")


def rough_notes(report) -> list[str]:
    """A note that names the metrics with rough intervals."""
    found = {name: s.precision for name, s in report.statistics.items() if s.precision.rough}
    if not found:
        return []
    names = ", ".join(f"{name} ({precision.df:.0f})" for name, precision in found.items())
    return [f"rough 95 % intervals, from fewer than {LEAST_DF} degrees of freedom: {names}"]


def _what_intervals_hold(report) -> list[str]:
    """What +- 95 % is an interval of, and the chips that it does not contain."""
    ends = ""
    for name, statistic in report.statistics.items():
        how = shown(name)
        if statistic.share and statistic.ci95 > 0:
            digits = max(how.decimals, math.ceil(-math.log10(how.factor * statistic.ci95)) + 1)  # never two equal ends
            low, high = (how.factor * end for end in statistic.interval)
            ends += f"; {how.label} {low:.{digits}f} to {high:.{digits}f}{how.behind}"
    held = f"+- 95 %: mean over chips of this network, on these {report.example}s{ends}"
    return [*textwrap.wrap(held, WIDTH, initial_indent="  ", subsequent_indent="    "), "  " + unseen_line(report)]


def unseen_line(report) -> str:
    """What no interval of a report contains."""
    return f"up to {100 * report.unseen_chips:.2g} % of chips may be unlike any seen (95 %)"


def _of_whole_sets(report) -> list[str]:
    rows = [["", "mean", "+- 95 %", "std", *(f"q{100 * q:g} %" for q in QUANTILES), "worst", "pooled"]]
    for name, statistic in report.statistics.items():
        figures = [statistic.mean, statistic.ci95, statistic.std]
        figures += [float(statistic.quantile(q)) for q in QUANTILES]
        figures += [float(statistic.worst), statistic.pooled]
        rows.append(_row(name, figures))
    lines = ["  " + line for line in align(rows)]
    lines += [*_what_intervals_hold(report), "", *_calibration(report)]
    return lines + _of_the_worst(report.first, report.statistics[report.first])


def _calibration(report) -> list[str]:
    return [] if math.isnan(report.ece) else [f"  calibration error (ECE, pooled)  {report.ece:.4f}"]


def _of_the_worst(name: str, statistic) -> list[str]:
    """Quantile and worst chip of the first metric."""
    how, higher = shown(name), statistic.higher_is_better
    if higher is None or not len(statistic.values):
        return [f"  {name}: no worst chip, because the metric does not say whether higher is better"]
    edge, worst = statistic.quantile(QUANTILES[0] if higher else QUANTILES[-1]), statistic.worst
    side = f"fall below {how.number(edge)}" if higher else f"lie above {how.number(edge)}"
    return [
        f"  5 % of chips {side}{how.behind} {how.label}; 95 % interval of that quantile: "
        f"{_bound(how, edge.low)} to {_bound(how, edge.high)}",
        f"  at most {100 * worst.bounds_quantile:.2g} % of chips are worse than {how.number(worst)}{how.behind}, "
        f"the worst of {worst.runs} (95 % confidence)",
    ]


def _of_slices(report) -> list[str]:
    rows = [["", "mean", "+- 95 %", "95 % from", "to", "std, estimated"]]
    for name, statistic in report.statistics.items():
        rows.append(_row(name, [statistic.mean, statistic.ci95, *statistic.interval, statistic.std]))
    lines = ["  " + line for line in align(rows)]
    equivalent = report.equivalent_full_runs
    if not math.isfinite(equivalent):
        worth = "no estimate in whole-set chips"
    elif equivalent == 0:
        worth = "no estimate in whole-set chips, as the estimated std is 0"
    else:
        worth = f"as precise as {equivalent:.1f} chips on all images"
    lines += [
        *_what_intervals_hold(report),
        "",
        *_calibration(report),
        f"  {report.images_evaluated:,} inferences, {report.tilings:.2f} tilings of {report.slices} slices: {worth}",
    ]
    return lines + textwrap.wrap(
        f"no quantiles, no worst case: {WHY_ABSENT}", WIDTH, initial_indent="  ", subsequent_indent="  "
    )


def _row(name: str, figures: list[float]) -> list[str]:
    how = shown(name)
    return [how.title, *map(how.number, figures)]


def _bound(how: Shown, value: float) -> str:
    return how.number(value) if math.isfinite(value) else "unbounded"
