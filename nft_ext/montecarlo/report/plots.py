"""Figures: one evaluation's chips, and accuracy against sigma for several networks."""

from __future__ import annotations

import os
import textwrap

import numpy as np

from nft_ext.montecarlo.report.curves import check_curves, common_conditions, convention
from nft_ext.montecarlo.report.text import images_a_chip

# Okabe and Ito's palette: told apart by every kind of colour vision, dark ones first.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
INK, FAINT = "#222222", "#8A8A8A"
STYLE = {
    "font.size": 10,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",
}
DPI = 150


def _matplotlib():
    try:
        import matplotlib
        import matplotlib.figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install matplotlib") from error
    return matplotlib


def plot_report(report, path: str | os.PathLike) -> None:
    """Histogram of the per-run accuracy, every chip below it, mean with interval, worst case (where chips saw all images)."""
    matplotlib = _matplotlib()
    accuracy = report.accuracy
    percent = 100 * accuracy.per_run
    whole = report.slice_images is None
    seen = report.images if whole else report.slice_images
    mean, half = 100 * accuracy.mean, 100 * accuracy.ci95
    low, high = (100 * end for end in accuracy.interval)
    with matplotlib.rc_context(STYLE):
        figure = matplotlib.figure.Figure(figsize=(7.2, 4.4), layout="constrained")
        top, strip = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        top.hist(percent, bins=_bin_edges(percent, seen), color=COLOURS[0], alpha=0.55,
                 edgecolor="white", linewidth=0.6)
        top.set_ylabel("chips")
        top.yaxis.get_major_locator().set_params(integer=True)

        # The order of the runs carries no meaning, but spreads equal values apart.
        height = (np.arange(len(percent)) * 0.618034) % 1
        strip.plot(percent, height, ".", color=COLOURS[0], alpha=0.6, markersize=4, markeredgewidth=0)
        strip.set(ylim=(-0.25, 1.25), yticks=[], xlabel=f"accuracy of a chip{'' if whole else ' on its slice'}, %")
        strip.spines["left"].set_visible(False)

        for axes in (top, strip):
            axes.axvspan(low, high, color=INK, alpha=0.15, linewidth=0)
            axes.axvline(mean, color=INK, linewidth=1.2)
        top.set_ylim(top=1.3 * top.get_ylim()[1])  # room for two rows of text
        _label_line(top, mean, 0.99, f"mean {mean:.2f} ± {half:.2f}", INK)
        if whole:
            _mark_worst(top, strip, accuracy, percent, height)
        figure.suptitle(_report_title(report), fontsize=10, x=0.01, ha="left")
        figure.savefig(path, dpi=DPI)


def _mark_worst(top, strip, accuracy, percent: np.ndarray, height: np.ndarray) -> None:
    """The worst chip, and what it says about chips not seen."""
    worst = int(np.argmin(percent))
    strip.plot(percent[worst], height[worst], "o", mfc="none", mec=COLOURS[1], markersize=8)
    for axes in (top, strip):
        axes.axvline(percent[worst], color=COLOURS[1], linewidth=1, linestyle=(0, (4, 3)))
    bound = 100 * accuracy.worst.bounds_quantile
    _label_line(top, percent[worst], 0.90, f"worst of {accuracy.worst.runs}: {percent[worst]:.2f} "
                f"(at most {bound:.2g} % of chips do worse)", COLOURS[1])


def _bin_edges(percent: np.ndarray, images: int) -> np.ndarray:
    """Edges between the possible accuracies k / images: no bin holds more of them than another."""
    step = 100 / images
    counts = np.rint(percent / step)
    low, high = int(counts.min()), int(counts.max())
    quartiles = np.quantile(counts, [0.25, 0.75])
    freedman_diaconis = 2 * (quartiles[1] - quartiles[0]) / len(counts) ** (1 / 3)
    width = max(1, round(max(freedman_diaconis, (high - low) / 60)))
    return (np.arange(low, high + width + 1, width) - 0.5) * step


def _label_line(axes, x: float, height: float, text: str, colour: str) -> None:
    """Writes `text` beside a vertical line, at `height` of the axes, on the side that has room."""
    low, high = axes.get_xlim()
    left = x > 0.5 * (low + high)
    axes.annotate(text, (x, height), xycoords=("data", "axes fraction"), xytext=(-5 if left else 5, 0),
                  textcoords="offset points", ha="right" if left else "left", va="top", color=colour,
                  bbox=dict(facecolor="white", alpha=0.75, edgecolor="none", pad=1))


def _report_title(report) -> str:
    state = ", interrupted" if report.interrupted else ""
    return (
        f"Accuracy over {report.runs} programmed chips x {images_a_chip(report)}, seed {report.seed}{state}\n"
        + textwrap.fill(report.conditions(), 90)
    )


def plot_sweep(curves: dict, path: str | os.PathLike, title: str) -> None:
    """Accuracy against sigma with 95 % bands of the mean, one labelled line a curve.

    curves: name -> list of reports, as `Sweep.reports` holds them. title: the figure's first line;
    the conditions shared by the reports stand below it.

    Raises ValueError if there is no report or one with several sigmas, ImportError (with the
    command that mends it) without matplotlib.
    """
    matplotlib = _matplotlib()
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
            half = 100 * np.array([report.accuracy.ci95 for report in curve])
            axes.fill_between(sigma, np.maximum(mean - half, 0), np.minimum(mean + half, 100), color=colour, alpha=0.2, linewidth=0)
            axes.plot(sigma, mean, color=colour, marker=MARKERS[number % len(MARKERS)], markersize=4.5,
                      linewidth=1.6)
            ends.append((name, colour, sigma[-1], mean[-1]))
        chance = 100 / reports[0].classes
        axes.axhline(chance, color=FAINT, linewidth=0.8, linestyle=(0, (2, 3)))
        low = min(report.sigma for report in reports)
        axes.annotate("chance", (low, chance), xytext=(0, 2), textcoords="offset points", color=FAINT,
                      fontsize=8, va="bottom")
        axes.set(xlabel=f"sigma, {convention(reports[0])}", ylabel="accuracy, % (mean over chips, 95 % band)")
        axes.grid(axis="y", color="#E4E4E4", linewidth=0.6)
        axes.set_axisbelow(True)
        _label_ends(axes, ends)
        axes.set_title(common_conditions(reports), fontsize=8.5, color="#555555", loc="left")
        figure.suptitle(title, fontsize=12, x=0.01, ha="left")
        figure.savefig(path, dpi=DPI)


def _label_ends(axes, ends: list[tuple[str, str, float, float]]) -> None:
    """Names each line at its right end, moved apart vertically where the ends meet."""
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
        axes.annotate(name, (x, y), xytext=(right + 0.05 * span, height), textcoords="data", color=colour,
                      va="center", annotation_clip=False,
                      arrowprops=dict(arrowstyle="-", color=colour, linewidth=0.7, alpha=0.6, shrinkA=1, shrinkB=4))
