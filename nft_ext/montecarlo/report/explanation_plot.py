"""The figure of an explanation: both changes of every effect and layer, with intervals."""

from __future__ import annotations

import math
import os

from nft_ext.montecarlo.report.figure_style import COLOURS, FAINT, INK, STYLE, require_matplotlib, save_figure
from nft_ext.montecarlo.report.text_table import shown

MOST = 40  # rows of a panel; of more, those with the largest changes
WITHOUT, ALONE = COLOURS[0], COLOURS[1]


def plot_explanation(found, path: str | os.PathLike) -> None:
    """Draws one panel for the effects and one for the layers: two bars per row, with 95 % intervals.

    Args:
        found: an Explanation.
        path: the file; its suffix selects PNG, PDF or SVG.

    Raises:
        ImportError: matplotlib is not installed.
    """
    matplotlib = require_matplotlib()
    panels = [(title, rows) for title, rows in (("effects", found.effects), ("noise of layers", found.layers)) if rows]
    panels = [(f"{title}{_left_out(rows)}", _largest(rows)) for title, rows in panels]
    heights = [1 + 0.5 * len(rows) for _, rows in panels]
    how = shown(found.metric)
    unit = f"points of {how.label}" if how.unit else how.label
    with matplotlib.rc_context(STYLE):
        figure = matplotlib.figure.Figure(figsize=(7.6, 1.5 + sum(heights) * 0.8), layout="constrained")
        axes = figure.subplots(len(panels), 1, sharex=True, height_ratios=heights, squeeze=False)[:, 0]
        for panel, (title, rows) in zip(axes, panels):
            _panel(panel, title, rows, how.factor)
        axes[-1].set_xlabel(f"change, {unit} (mean over {found.runs} chips, 95 % interval)")
        for name, colour in (("without it: all else on", WITHOUT), ("alone: all else off", ALONE)):
            axes[0].barh(0, 0, color=colour, label=name)  # for the legend
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
        float_weights, quantized, chips = (
            how.number(level[0]) + how.behind for level in (found.ideal, found.quantized, found.full)
        )
        title = f"{how.label}: {float_weights} with float weights, {quantized} quantized, {chips} on chips"
        figure.suptitle(title, fontsize=11, x=0.01, ha="left")
        save_figure(figure, path)


def _panel(axes, title: str, rows: list, factor: float) -> None:
    for place, row in enumerate(rows):
        for change, colour, offset in ((row.without, WITHOUT, -0.19), (row.alone, ALONE, 0.19)):
            if change is None or math.isnan(change.mean):
                continue
            height = place + offset
            axes.barh(height, factor * change.mean, 0.36, color=colour, alpha=0.85, linewidth=0)
            if change.ci95 > 0:  # neither exact nor unknown
                axes.errorbar(
                    factor * change.mean, height, xerr=factor * change.ci95, color=INK, linewidth=1, capsize=2
                )
    axes.axvline(0, color=FAINT, linewidth=0.8)
    axes.set_yticks(range(len(rows)), [row.name for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)  # the first row on top
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color="#E4E4E4", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_title(title, fontsize=9.5, color="#555555", loc="left")


def _size(row) -> float:
    return max(abs(change.mean) for change in (row.without, row.alone) if change is not None)


def _largest(rows: list) -> list:
    rows = [row for row in rows if row.without is not None or row.alone is not None]
    kept = sorted(rows, key=_size)[-MOST:]
    return [row for row in rows if row in kept]


def _left_out(rows: list) -> str:
    return f" (the {MOST} with the largest changes, of {len(rows)})" if len(rows) > MOST else ""
