"""The figure of one evaluation: the accuracy of every chip."""

from __future__ import annotations

import os
import textwrap

import numpy as np

from nft_ext.montecarlo.report.digital_part import digital_part
from nft_ext.montecarlo.report.figure_style import COLOURS, INK, STYLE, require_matplotlib, save_figure
from nft_ext.montecarlo.report.text_table import figure as rounded
from nft_ext.montecarlo.report.text_table import images_per_chip
from nft_ext.montecarlo.statistics.run_statistic import RunStatistic


def plot_report(report, path: str | os.PathLike) -> None:
    """Draws a histogram of the accuracy per chip, every chip below it, and the mean with its interval.

    If chips saw all images, it also marks the worst chip.

    Args:
        report: a MonteCarloReport.
        path: the file; its suffix selects PNG, PDF or SVG.

    Raises:
        ImportError: matplotlib is not installed.
    """
    matplotlib = require_matplotlib()
    accuracy = report.accuracy
    percent = 100 * accuracy.per_run
    whole = isinstance(accuracy, RunStatistic)
    seen = report.slice_images or report.images
    mean, half = 100 * accuracy.mean, 100 * accuracy.ci95
    low, high = (100 * end for end in accuracy.interval)
    with matplotlib.rc_context(STYLE):
        figure = matplotlib.figure.Figure(figsize=(7.2, 4.4), layout="constrained")
        top, strip = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        top.hist(
            percent, bins=_bin_edges(percent, seen), color=COLOURS[0], alpha=0.55, edgecolor="white", linewidth=0.6
        )
        top.set_ylabel("chips")
        top.yaxis.get_major_locator().set_params(integer=True)

        # The height has no meaning; it separates chips of equal accuracy.
        height = (np.arange(len(percent)) * 0.618034) % 1
        strip.plot(percent, height, ".", color=COLOURS[0], alpha=0.6, markersize=4, markeredgewidth=0)
        strip.set(ylim=(-0.25, 1.25), yticks=[], xlabel=f"accuracy of a chip{'' if whole else ' on its slice'}, %")
        strip.spines["left"].set_visible(False)

        for axes in (top, strip):
            axes.axvspan(low, high, color=INK, alpha=0.15, linewidth=0)
            axes.axvline(mean, color=INK, linewidth=1.2)
        top.set_ylim(top=1.3 * top.get_ylim()[1])  # room for two rows of text
        _label_line(top, mean, 0.99, f"mean {mean:.2f} ± {rounded(half, 2)}", INK)
        if whole:
            _mark_worst(top, strip, accuracy, percent, height)
        figure.suptitle(_report_title(report), fontsize=10, x=0.01, ha="left")
        save_figure(figure, path)


def _mark_worst(top, strip, accuracy, percent: np.ndarray, height: np.ndarray) -> None:
    """Marks the worst chip, and writes its bound on all chips."""
    worst = int(np.argmin(percent))
    strip.plot(percent[worst], height[worst], "o", mfc="none", mec=COLOURS[1], markersize=8)
    for axes in (top, strip):
        axes.axvline(percent[worst], color=COLOURS[1], linewidth=1, linestyle=(0, (4, 3)))
    bound = 100 * accuracy.worst.bounds_quantile
    _label_line(
        top,
        percent[worst],
        0.90,
        f"worst of {accuracy.worst.runs}: {percent[worst]:.2f} (at most {bound:.2g} % of chips are worse)",
        COLOURS[1],
    )


def _bin_edges(percent: np.ndarray, images: int) -> np.ndarray:
    """Bin edges between the possible accuracies k / images, so that every bin holds equally many of them."""
    step = 100 / images
    counts = np.rint(percent / step)
    low, high = int(counts.min()), int(counts.max())
    quartiles = np.quantile(counts, [0.25, 0.75])
    freedman_diaconis = 2 * (quartiles[1] - quartiles[0]) / len(counts) ** (1 / 3)
    width = max(1, round(max(freedman_diaconis, (high - low) / 60)))
    return (np.arange(low, high + width + 1, width) - 0.5) * step


def _label_line(axes, x: float, height: float, text: str, colour: str) -> None:
    """Writes `text` beside a vertical line, at `height` of the axes, on the side with more room."""
    low, high = axes.get_xlim()
    left = x > 0.5 * (low + high)
    axes.annotate(
        text,
        (x, height),
        xycoords=("data", "axes fraction"),
        xytext=(-5 if left else 5, 0),
        textcoords="offset points",
        ha="right" if left else "left",
        va="top",
        color=colour,
        bbox=dict(facecolor="white", alpha=0.75, edgecolor="none", pad=1),
    )


def _report_title(report) -> str:
    state = ", interrupted" if report.interrupted else ""
    return (
        f"Accuracy over {report.runs} programmed chips x {images_per_chip(report)}, seed {report.seed}{state}\n"
        + textwrap.fill(report.conditions() + digital_part([report]), 90)
    )
