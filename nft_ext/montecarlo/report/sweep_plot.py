"""The figure of several networks: accuracy against sigma."""

from __future__ import annotations

import os

import numpy as np

from nft_ext.montecarlo.report.curves import check_curves, common_conditions, convention
from nft_ext.montecarlo.report.figure_style import COLOURS, FAINT, MARKERS, STYLE, require_matplotlib, save_figure


def plot_sweep(curves: dict, path: str | os.PathLike, title: str) -> None:
    """Draws accuracy against sigma with 95 % bands of the mean, one labelled line per curve.

    Args:
        curves: name -> list of reports, as in `Sweep.reports`.
        path: the file; its suffix selects PNG, PDF or SVG.
        title: first line of the figure. The common conditions of the reports follow below it.

    Raises:
        ValueError: no report, or a report with several sigmas.
        ImportError: matplotlib is not installed. The message has the command that installs it.
    """
    matplotlib = require_matplotlib()
    reports = check_curves(curves)
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
            mean = 100 * np.array([report.accuracy.mean for report in curve])
            low, high = 100 * np.array([report.accuracy.interval for report in curve]).T
            axes.fill_between(sigma, low, high, color=colour, alpha=0.2, linewidth=0)
            axes.plot(sigma, mean, color=colour, marker=MARKERS[number % len(MARKERS)], markersize=4.5, linewidth=1.6)
            ends.append((name, colour, sigma[-1], mean[-1]))
        chance = 100 / reports[0].classes
        axes.axhline(chance, color=FAINT, linewidth=0.8, linestyle=(0, (2, 3)))
        low = min(report.sigma for report in reports)
        axes.annotate(
            "chance", (low, chance), xytext=(0, 2), textcoords="offset points", color=FAINT, fontsize=8, va="bottom"
        )
        axes.set(xlabel=f"sigma, {convention(reports[0])}", ylabel="accuracy, % (mean over chips, 95 % band)")
        axes.grid(axis="y", color="#E4E4E4", linewidth=0.6)
        axes.set_axisbelow(True)
        _label_ends(axes, ends)
        axes.set_title(common_conditions(reports), fontsize=8.5, color="#555555", loc="left")
        figure.suptitle(title, fontsize=12, x=0.01, ha="left")
        save_figure(figure, path)


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
