"""Reports as aligned text tables."""

from __future__ import annotations

import math
import textwrap

from nft_ext._common.coverage_line import coverage_line
from nft_ext.montecarlo.statistics.slice_estimate import LEAST_DF
from nft_ext.montecarlo.statistics.slice_statistic import WHY_ABSENT, SliceStatistic

WIDTH = 96
QUANTILES = (0.05, 0.5, 0.95)
# metric name -> (name in the table, factor to its unit, decimals)
SHOWN = {
    "accuracy": ("accuracy, %", 100.0, 2),
    "ekl": ("EKL", 1.0, 4),
    "nll": ("NLL", 1.0, 4),
}


def align(rows: list[list[str]]) -> list[str]:
    """Formats rows of cells as lines: the first column flush left, the others flush right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths))).rstrip()
        for row in rows
    ]


def images_per_chip(report) -> str:
    """The number of images per chip, in words."""
    return (
        f"{report.images} images" if report.slice_images is None else f"{report.slice_images} of {report.images} images"
    )


def figure(value: float, decimals: int) -> str:
    """The value with so many decimals, or with one digit where these would show a zero that is none."""
    return f"{value:.1g}" if 0 < abs(value) < 0.5 * 10**-decimals else f"{value:.{decimals}f}"


def report_table(report) -> str:
    """The table of `MonteCarloReport.table`."""
    lines = [
        f"Monte Carlo over programmed chips: {report.runs} chips x {images_per_chip(report)}"
        + (" (interrupted)" if report.interrupted else ""),
        f"  noise     {report.conditions()}",
        f"  chips     seed {report.seed}, draws 0 .. {report.runs - 1}, protocol {report.protocol}",
        f"  computed  {report.precision} on {report.hardware}, {report.chips_per_pass} chip(s) per pass, "
        f"batch {report.batch_size}, {report.seconds:.1f} s "
        f"({report.images_evaluated / max(report.seconds, 1e-9):,.0f} images/s)",
    ]
    if report.coverage is not None:
        line = coverage_line(report.coverage)
        lines += textwrap.wrap(f"weights   {line}", WIDTH, initial_indent="  ", subsequent_indent=" " * 12)
    lines.append("")
    sliced = any(isinstance(statistic, SliceStatistic) for statistic in report.statistics.values())
    lines += _of_slices(report) if sliced else _of_whole_sets(report)
    for note in [*_rough(report), *report.notes]:
        lines += note_lines(note)
    return "\n".join(lines)


def note_lines(note: str) -> list[str]:
    """A note as indented lines."""
    return textwrap.wrap(f"note: {note}", WIDTH, initial_indent="  ", subsequent_indent="        ")


def _rough(report) -> list[str]:
    """A note that names the metrics with rough intervals."""
    found = {name: s.precision for name, s in report.statistics.items() if s.precision.rough}
    if not found:
        return []
    names = ", ".join(f"{name} ({precision.df:.0f})" for name, precision in found.items())
    return [f"rough 95 % intervals, from fewer than {LEAST_DF} degrees of freedom: {names}"]


def _what_intervals_hold(report) -> list[str]:
    """What +- 95 % is an interval of, and the chips that it does not contain."""
    ends = ""
    accuracy = report.statistics.get("accuracy")
    if accuracy is not None and accuracy.share and accuracy.ci95 > 0:
        digits = max(2, math.ceil(-math.log10(100 * accuracy.ci95)) + 1)  # never two equal ends
        low, high = (100 * end for end in accuracy.interval)
        ends = f"; accuracy {low:.{digits}f} to {high:.{digits}f} %"
    return [
        f"  +- 95 %: mean over chips of this network, on these images{ends}",
        f"  up to {100 * report.unseen_chips:.2g} % of chips may be unlike any seen (95 %)",
    ]


def _of_whole_sets(report) -> list[str]:
    rows = [["", "mean", "+- 95 %", "std", *(f"q{100 * q:g} %" for q in QUANTILES), "worst", "pooled"]]
    for name, statistic in report.statistics.items():
        figures = [statistic.mean, statistic.ci95, statistic.std]
        figures += [float(statistic.quantile(q)) for q in QUANTILES]
        figures += [float(statistic.worst), statistic.pooled]
        rows.append(_row(name, figures))
    lines = ["  " + line for line in align(rows)]
    lines += [*_what_intervals_hold(report), "", f"  calibration error (ECE, pooled)  {report.ece:.4f}"]
    low, worst = report.accuracy.quantile(QUANTILES[0]), report.accuracy.worst
    return lines + [
        f"  5 % of chips fall below {100 * low:.2f} % accuracy; 95 % interval of that quantile: "
        f"{_bound(low.low, 'unbounded')} to {_bound(low.high, 'unbounded')}",
        f"  at most {100 * worst.bounds_quantile:.2g} % of chips are worse than {100 * worst:.2f} %, "
        f"the worst of {worst.runs} (95 % confidence)",
    ]


def _of_slices(report) -> list[str]:
    rows = [["", "mean", "+- 95 %", "95 % from", "to", "std, estimated"]]
    for name, statistic in report.statistics.items():
        rows.append(_row(name, [statistic.mean, statistic.ci95, *statistic.interval, statistic.std]))
    lines = ["  " + line for line in align(rows)]
    equivalent = report.equivalent_full_runs
    worth = f"as precise as {equivalent:.1f} chips on all images" if math.isfinite(equivalent) else "no estimated std"
    lines += [
        *_what_intervals_hold(report),
        "",
        f"  calibration error (ECE, pooled)  {report.ece:.4f}",
        f"  {report.images_evaluated:,} inferences, {report.tilings:.2f} tilings of {report.slices} slices: {worth}",
    ]
    return lines + textwrap.wrap(
        f"no quantiles, no worst case: {WHY_ABSENT}", WIDTH, initial_indent="  ", subsequent_indent="  "
    )


def _row(name: str, figures: list[float]) -> list[str]:
    label, factor, decimals = SHOWN[name]
    return [label, *("-" if math.isnan(x) else figure(factor * x, decimals) for x in figures)]


def _bound(value: float, absent: str) -> str:
    return f"{100 * value:.2f}" if math.isfinite(value) else absent
