"""The figure of several networks: the first metric against sigma."""

from __future__ import annotations

import os

import numpy as np

from nft_ext.montecarlo.report.curves import check_curves, common_conditions, convention
from nft_ext.montecarlo.report.figure_style import COLOURS, FAINT, MARKERS, STYLE, require_matplotlib, save_figure
from nft_ext.montecarlo.report.text_table import shown


def plot_sweep(curves: dict, path: str | os.PathLike, title: str) -> None:
    """Draws the first metric against sigma with 95 % bands of the mean, one labelled line per curve.

    Args:
        curves: name -> list of reports, as in `Sweep.reports`.
        path: the file; its suffix selects PNG, PDF or SVG.
        title: first line of the figure. The common conditions of the reports follow below it.

    Raises:
        ValueError: as `check_curves`.
        ImportError: matplotlib is not installed. The message has the command that installs it.
    """
    matplotlib = require_matplotlib()
    reports = check_curves(curves)
    how = shown(reports[0].first)
    with matplotlib.rc_context(STYLE):
        figure = matplotlib.figure.Figure(figsize=(7.6, 4.8), layout="constrained")
        axes = figure.subplots()
        ends = []
        for number, (name, curve) in enumerate(curves.items()):
            if not curve:
                continue
            curve = sorted(curve, key=lambda report: report.sigma)
            colour = COLOURS[number % len(COLOURS)]
            sigma = np.array([report.sigma for report in curve])
            found = [report.statistics[report.first] for report in curve]
            mean = how.factor * np.array([statistic.mean for statistic in found])
            low, high = how.factor * np.array([statistic.interval for statistic in found]).T
            if how.unit == "%":  # a mean IoU's interval has no limits of its own
                low, high = np.maximum(low, 0), np.minimum(high, 100)
            axes.fill_between(sigma, low, high, color=colour, alpha=0.2, linewidth=0)
            axes.plot(sigma, mean, color=colour, marker=MARKERS[number % len(MARKERS)], markersize=4.5, linewidth=1.6)
            ends.append((name, colour, sigma[-1], mean[-1]))
        if reports[0].first == "accuracy" and reports[0].classes:
            _mark_chance(axes, 100 / reports[0].classes)
        unit = f", {how.unit}" if how.unit else ""
        axes.set(xlabel=f"sigma, {convention(reports[0])}", ylabel=f"{how.label}{unit} (mean over chips, 95 % band)")
        axes.grid(axis="y", color="#E4E4E4", linewidth=0.6)
        axes.set_axisbelow(True)
        _label_ends(axes, ends)
        axes.set_title(common_conditions(reports), fontsize=8.5, color="#555555", loc="left")
        figure.suptitle(title, fontsize=12, x=0.01, ha="left")
        save_figure(figure, path)


def _mark_chance(axes, chance: float) -> None:
    """Draws the accuracy of a guess."""
    axes.axhline(chance, color=FAINT, linewidth=0.8, linestyle=(0, (2, 3)))
    left = min(line.get_xdata()[0] for line in axes.get_lines()[:-1])
    axes.annotate(
        "chance", (left, chance), xytext=(0, 2), textcoords="offset points", color=FAINT, fontsize=8, va="bottom"
    )


def _label_ends(axes, ends: list[tuple[str, str, float, float]]) -> None:
    """Writes each curve's name at its right end. Names that overlap are moved apart vertically."""
    low, high = axes.get_ylim()
    gap = 0.052 * (high - low)  # the height of a line of text
    ends = sorted(ends, key=lambda end: end[3])
    at = [end[3] for end in ends]
    for _ in range(200):
        for i in range(1, len(at)):
            overlap = gap - (at[i] - at[i - 1])
            if overlap > 1e-9:
                at[i - 1] -= overlap / 2
                at[i] += overlap / 2
    right = max(end[2] for end in ends)
    span = axes.get_xlim()[1] - axes.get_xlim()[0]
    for (name, colour, x, y), height in zip(ends, at):
        axes.annotate(
            name,
            (x, y),
            xytext=(right + 0.05 * span, height),
            textcoords="data",
            color=colour,
            va="center",
            annotation_clip=False,
            arrowprops=dict(arrowstyle="-", color=colour, linewidth=0.7, alpha=0.6, shrinkA=1, shrinkB=4),
        )
