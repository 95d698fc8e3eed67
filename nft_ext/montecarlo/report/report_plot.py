"""The figure of one evaluation: the first metric of every chip."""

from __future__ import annotations

import os
import textwrap

import numpy as np

from nft_ext._common.checks import fail
from nft_ext.montecarlo.report.digital_part import digital_part
from nft_ext.montecarlo.report.figure_style import COLOURS, INK, STYLE, require_matplotlib, save_figure
from nft_ext.montecarlo.report.text_table import Shown, images_per_chip, shown
from nft_ext.montecarlo.statistics.run_statistic import RunStatistic


def plot_report(report, path: str | os.PathLike) -> None:
    """Draws a histogram of the first metric per chip, every chip below it, and the mean with its interval.

    If chips saw all images, it also marks the worst chip.

    Args:
        report: a MonteCarloReport.
        path: the file; its suffix selects PNG, PDF or SVG.

    Raises:
        ImportError: matplotlib is not installed.
    """
    matplotlib = require_matplotlib()
    how, statistic = shown(report.first), report.statistics[report.first]
    values = how.factor * statistic.values
    if not len(values):
        fail("metrics", "must have a value for at least one chip to be drawn", report.first)
    whole = isinstance(statistic, RunStatistic)
    seen = report.slice_images or report.images
    mean = how.factor * statistic.mean
    low, high = (how.factor * end for end in statistic.interval)
    edges = _edges_of_counts(values, seen) if report.first == "accuracy" else _edges(values)
    with matplotlib.rc_context(STYLE):
        figure = matplotlib.figure.Figure(figsize=(7.2, 4.4), layout="constrained")
        top, strip = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        top.hist(values, bins=edges, color=COLOURS[0], alpha=0.55, edgecolor="white", linewidth=0.6)
        top.set_ylabel("chips")
        top.yaxis.get_major_locator().set_params(integer=True)

        # The height has no meaning; it separates chips of equal value.
        height = (np.arange(len(values)) * 0.618034) % 1
        strip.plot(values, height, ".", color=COLOURS[0], alpha=0.6, markersize=4, markeredgewidth=0)
        strip.set(ylim=(-0.25, 1.25), yticks=[], xlabel=_axis(how, whole))
        strip.spines["left"].set_visible(False)

        for axes in (top, strip):
            axes.axvspan(low, high, color=INK, alpha=0.15, linewidth=0)
            axes.axvline(mean, color=INK, linewidth=1.2)
        top.set_ylim(top=1.3 * top.get_ylim()[1])  # room for two rows of text
        _label_line(top, mean, 0.99, f"mean {how.number(statistic.mean)} ± {how.number(statistic.ci95)}", INK)
        if whole and statistic.higher_is_better is not None:
            _mark_worst(top, strip, statistic, how, height)
        figure.suptitle(_report_title(report), fontsize=10, x=0.01, ha="left")
        save_figure(figure, path)


def _axis(how: Shown, whole: bool) -> str:
    return f"{how.label} of a chip{'' if whole else ' on its slice'}{f', {how.unit}' if how.unit else ''}"


def _mark_worst(top, strip, statistic, how: Shown, height: np.ndarray) -> None:
    """Marks the worst chip, and writes its bound on all chips."""
    values = how.factor * statistic.values
    worst = int(np.argmin(values) if statistic.higher_is_better else np.argmax(values))
    strip.plot(values[worst], height[worst], "o", mfc="none", mec=COLOURS[1], markersize=8)
    for axes in (top, strip):
        axes.axvline(values[worst], color=COLOURS[1], linewidth=1, linestyle=(0, (4, 3)))
    found = statistic.worst
    bound = f"at most {100 * found.bounds_quantile:.2g} % of chips are worse"
    _label_line(top, values[worst], 0.90, f"worst of {found.runs}: {how.number(found)} ({bound})", COLOURS[1])


def _edges_of_counts(percent: np.ndarray, images: int) -> np.ndarray:
    """Bin edges between the possible accuracies k / images, so that every bin holds equally many of them."""
    step = 100 / images
    counts = np.rint(percent / step)
    low, high = int(counts.min()), int(counts.max())
    quartiles = np.quantile(counts, [0.25, 0.75])
    freedman_diaconis = 2 * (quartiles[1] - quartiles[0]) / len(counts) ** (1 / 3)
    width = max(1, round(max(freedman_diaconis, (high - low) / 60)))
    return (np.arange(low, high + width + 1, width) - 0.5) * step


def _edges(values: np.ndarray) -> np.ndarray:
    """Bin edges by the rule of Freedman and Diaconis, at most 60 bins."""
    low, high = float(values.min()), float(values.max())
    if not high > low:
        return np.array([low - 0.5 * max(abs(low), 1e-12), low + 0.5 * max(abs(low), 1e-12)])
    quartiles = np.quantile(values, [0.25, 0.75])
    width = max(2 * (quartiles[1] - quartiles[0]) / len(values) ** (1 / 3), (high - low) / 60)
    return np.linspace(low, high, max(1, int(np.ceil((high - low) / width))) + 1)


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
    state, label = ", interrupted" if report.interrupted else "", shown(report.first).label
    chips = f"{report.runs} programmed chips x {images_per_chip(report)}, seed {report.seed}{state}"
    conditions = textwrap.fill(report.conditions() + digital_part([report]), 90)
    return f"{label[0].upper()}{label[1:]} over {chips}\n{conditions}"
