"""The plots of a report, in the paper's form: our points filled, published points hollow, one colour per method."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from nft_ext.reproduce.convergence import Converged
from nft_ext.reproduce.settings import BASE, SETTINGS
from nft_ext.reproduce.summary import Row, rank
from nft_ext.reproduce.tables import label
from nft_ext.reproduce.theme import CHANCE, MARKERS, NAMES, Theme, style

FEW = 5  # sigmas up to which the lines stand side by side


def drawn(kind: str, rows: Sequence[Row], counts: Sequence[Converged], theme: Theme, suffix: str) -> bytes:
    """A plot as the bytes of a PNG or SVG file. Equal inputs give equal bytes.

    Args:
        kind: "accuracy" or "ekl" (against sigma), "convergence" (one mark per training), "variants" (one line per
            variant), or "settings" (one group per setting of the protocol study).
        rows: the results. "convergence" does not use them.
        counts: the results of "convergence".
        theme: the colours.
        suffix: "png" or "svg".

    Raises:
        ImportError: matplotlib is not installed. The message has the command to install it.
    """
    try:
        import matplotlib
        import matplotlib.figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install matplotlib") from error
    draw = {"accuracy": _accuracy, "ekl": _ekl, "variants": _variants, "settings": _settings}.get(kind)
    with matplotlib.rc_context(style(theme)):
        figure = matplotlib.figure.Figure(layout="constrained")
        draw(figure, rows, theme) if draw else _convergence(figure, counts, theme)
        content = io.BytesIO()
        figure.savefig(
            content, format=suffix, dpi=150, metadata={"Date": None} if suffix == "svg" else {"Software": None}
        )
    return content.getvalue()


def _panels(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row.panel for row in rows))


def _grid(figure: Any, rows: Sequence[Row]) -> list[tuple[str, Any]]:
    """One plot per panel, at most three side by side."""
    panels = _panels(rows)
    columns = min(3, len(panels))
    lines = math.ceil(len(panels) / columns)
    figure.set_size_inches((8.2, 4.9) if len(panels) == 1 else (4.4 * columns, 3.6 * lines + 0.7))
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for unused in axes[len(panels) :]:
        unused.remove()
    return list(zip(panels, axes))


def _sweep(
    figure: Any,
    rows: Sequence[Row],
    theme: Theme,
    value: str,
    band: Callable[[Row], tuple[float, float]],
    published: str,
) -> list[tuple[str, Any]]:
    """Plots one line per method over sigma, with `band` (low, high) and the published points.

    With few sigmas the lines stand side by side with one bar per point, because bands of close lines hide each other.
    """
    places = _grid(figure, rows)
    variants = sorted({row.variant for row in rows}, key=rank)
    for panel, axes in places:
        sigmas = sorted({row.sigma for row in rows if row.panel == panel})
        apart = 0.011 * (sigmas[-1] - sigmas[0] or 1.0) if len(sigmas) <= FEW else 0.0
        for place, variant in enumerate(variants):
            line = sorted(
                (row for row in rows if (row.panel, row.variant) == (panel, variant)), key=lambda row: row.sigma
            )
            sigma, mean = (np.array([getattr(row, name) for row in line], float) for name in ("sigma", value))
            low, high = np.array([band(row) for row in line], float).reshape(-1, 2).T
            colour, marker = theme.colour(variant), MARKERS.get(variant, "o")
            at = sigma + apart * (place - (len(variants) - 1) / 2)
            if apart:
                axes.vlines(at, low, high, color=colour, linewidth=1.4, alpha=0.8)
            else:
                axes.fill_between(at, low, high, color=colour, alpha=0.16, linewidth=0)
            axes.plot(
                at, mean, color=colour, marker=marker, markersize=5, linewidth=1.7, label=NAMES.get(variant, variant)
            )
            paper = [(x, getattr(row, published)) for x, row in zip(at, line) if getattr(row, published) is not None]
            if paper:
                axes.plot(*zip(*paper), marker, mfc="none", mec=colour, markersize=8, markeredgewidth=1.3)
        axes.set_title(panel, loc="left", fontsize=10)
        if len(sigmas) <= 10:
            axes.set_xticks(sigmas, [f"{sigma:g}" for sigma in sigmas])
        axes.set_xlabel("device sigma, relative to the maximal conductance")
    _legend(figure, places[0][1], theme, any(getattr(row, published) is not None for row in rows))
    return places


def _legend(figure: Any, axes: Any, theme: Theme, paper: bool) -> None:
    from matplotlib.lines import Line2D

    handles, names = axes.get_legend_handles_labels()
    if paper:
        handles.append(
            Line2D([], [], marker="o", linestyle="none", mfc="none", mec=theme.ink, markersize=8, markeredgewidth=1.3)
        )
        names.append("hollow: published")
    figure.legend(handles, names, loc="outside lower center", ncols=min(4, len(names)), fontsize=9)


def _with_seeds(rows: Sequence[Row], what: str = "95 %") -> str:
    seeds = sorted({len(row.seeds) for row in rows})
    if seeds == [1]:
        return "one training seed: no interval"
    return f"{what} over {seeds[0] if len(seeds) == 1 else f'{seeds[0]} to {seeds[-1]}'} training seeds"


def _interval(row: Row) -> tuple[float, float]:
    """The 95 % interval over training seeds, within 0 and 100 %."""
    if not math.isfinite(row.seed_ci95):
        return math.nan, math.nan  # one seed: draws nothing
    return max(0.0, row.accuracy - row.seed_ci95), min(100.0, row.accuracy + row.seed_ci95)


def _limits(seen: Sequence[float]) -> tuple[float, float]:
    """Limits of the accuracy axis from the marks `seen`. Intervals may exceed them: those of two seeds can be huge."""
    return max(0.0, min(seen) - 6), min(101.5, max(seen) + 6)


def _accuracy(figure: Any, rows: Sequence[Row], theme: Theme) -> None:
    for panel, axes in _sweep(figure, rows, theme, "accuracy", _interval, "published"):
        here = [row for row in rows if row.panel == panel]
        seen = [v for row in here for v in (row.accuracy, row.published) if v is not None]
        chance = CHANCE.get(panel.rpartition("-")[2])
        axes.set_ylim(*_limits(seen))
        if chance is not None and axes.get_ylim()[0] < chance:
            axes.axhline(chance, color=theme.faint, linewidth=0.8, linestyle=(0, (2, 3)))
            axes.annotate(
                "chance",
                (0, chance),
                xycoords=("axes fraction", "data"),
                xytext=(3, 2),
                textcoords="offset points",
                color=theme.faint,
                fontsize=8,
            )
        axes.set_ylabel("accuracy, %")
    figure.suptitle(f"Accuracy over programmed chips ({_with_seeds(rows)})", fontsize=11, x=0.01, ha="left")


def _ekl(figure: Any, rows: Sequence[Row], theme: Theme) -> None:
    def reach(row: Row) -> tuple[float, float]:  # not an interval, which can fall below 0 on the logarithmic axis
        values = [value for value in row.ekl_per_seed if math.isfinite(value)]
        return (min(values), max(values)) if len(values) > 1 else (math.nan, math.nan)

    for panel, axes in _sweep(figure, rows, theme, "ekl", reach, "published_ekl"):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        seen = [
            v for row in rows if row.panel == panel for v in (row.ekl, row.published_ekl) if v is not None and v > 0
        ]
        if seen:
            axes.set_ylim(min(seen) / 2, max(seen) * 2)
        axes.set_ylabel("EKL, nat")
    title = f"Expected KL divergence of right answers ({_with_seeds(rows, 'lowest to highest')})"
    figure.suptitle(
        f"{title}\nThe paper does not name the model and data set of its EKL figure.",
        fontsize=11,
        x=0.01,
        ha="left",
    )


def _convergence(figure: Any, counts: Sequence[Converged], theme: Theme) -> None:
    """One mark per training. A short line shows the paper's criterion, a dashed line the common one."""
    places = list(dict.fromkeys((one.panel, one.sigma) for one in counts))
    figure.set_size_inches(7.6, 4.6 * len(places))
    for (panel, sigma), axes in zip(places, figure.subplots(len(places), 1, squeeze=False).ravel()):
        here = [one for one in counts if (one.panel, one.sigma) == (panel, sigma)]
        for x, one in enumerate(here):
            colour, accuracy = theme.colour(one.variant), np.array(one.accuracy)
            place = x + np.linspace(-0.2, 0.2, len(accuracy)) if len(accuracy) > 1 else np.array([float(x)])
            good = np.array(one.relative.converged)
            axes.plot(place[good], accuracy[good], "o", mfc=colour, mec=theme.ground, markersize=8)
            axes.plot(
                place[~good], accuracy[~good], "X", mfc=theme.ground, mec=colour, markersize=9, markeredgewidth=1.5
            )
            bar = 100 * one.relative.thresholds[0]
            axes.plot([x - 0.32, x + 0.32], [bar, bar], color=colour, linewidth=1.4)
        common = 100 * here[0].absolute.thresholds[0]
        axes.axhline(common, color=theme.faint, linestyle=(0, (5, 3)), linewidth=1.1)
        axes.set_xticks(range(len(here)), [_counted(one) for one in here])
        axes.set(xlim=(-0.55, len(here) - 0.45), ylabel="accuracy over chips, %")
        axes.set_title(
            f"{panel}, sigma {sigma:g}: one mark per training. Short line: 5 points below the method's mean;\n"
            f"crosses are below it. Dashed: {common:.1f} %, 90 % of the highest clean accuracy.",
            fontsize=9.5,
            loc="left",
        )


def _counted(one: Converged) -> str:
    paper = "" if one.paper is None else f"\npaper {one.paper[0]}/{one.paper[1]}"
    name = NAMES.get(one.variant, label(one.variant))
    return f"{name}\nfail {one.relative.non_converging}/{one.relative.runs}{paper}"


def _variants(figure: Any, rows: Sequence[Row], theme: Theme) -> None:
    """One line per variant: mean with interval, one faint dot per seed, the published value hollow."""
    places = list(dict.fromkeys((row.panel, row.sigma) for row in rows))
    figure.set_size_inches(
        8.2, sum(0.9 + 0.27 * sum((r.panel, r.sigma) == place for r in rows) for place in places) + 0.5
    )
    sizes = [2 + sum((r.panel, r.sigma) == place for r in rows) for place in places]
    plots = figure.subplots(len(places), 1, squeeze=False, height_ratios=sizes).ravel()
    for (panel, sigma), axes in zip(places, plots):
        here = sorted(
            (row for row in rows if (row.panel, row.sigma) == (panel, sigma)), key=lambda row: rank(row.variant)
        )
        heights, height = [], 0.0
        for before, row in zip([None, *here], here):
            height += 1.6 if before is not None and rank(before.variant)[:2] != rank(row.variant)[:2] else 1.0
            heights.append(height)
            colour = theme.colour(row.variant)
            axes.plot(
                row.per_seed,
                [height + 0.36] * len(row.per_seed),
                "o",
                color=colour,
                alpha=0.7,
                markersize=3.2,
                markeredgewidth=0,
            )
            axes.plot(_interval(row), [height, height], color=colour, linewidth=1.6, alpha=0.8)
            axes.plot(row.accuracy, height, "o", color=colour, markersize=7)
            if row.published is not None:
                axes.plot(row.published, height, "o", mfc="none", mec=colour, markersize=9, markeredgewidth=1.4)
        seen = [v for row in here for v in (*row.per_seed, row.accuracy, row.published) if v is not None]
        axes.set_xlim(*_limits(seen))
        axes.set_yticks(heights, [label(row.variant) for row in here])
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(heights[-1] + 0.8, heights[0] - 0.8)
        axes.grid(axis="x")
        axes.set_xlabel("accuracy over chips, %")
        axes.set_title(f"{panel}, sigma {sigma:g}", fontsize=10, loc="left")
    interval = _with_seeds(rows)
    figure.suptitle(
        f"Accuracy over programmed chips. Filled: ours ({interval};\nsmall dots: single seeds). Hollow: published.",
        fontsize=11,
        x=0.01,
        ha="left",
    )


def _settings(figure: Any, rows: Sequence[Row], theme: Theme) -> None:
    """One group per setting: each method's mean with interval, one faint dot per seed."""
    places = list(dict.fromkeys((row.panel, row.sigma) for row in rows))
    figure.set_size_inches(9.6, 4.8 * len(places))
    plots = figure.subplots(len(places), 1, squeeze=False).ravel()
    for (panel, sigma), axes in zip(places, plots):
        lines = {row.variant: row for row in rows if (row.panel, row.sigma) == (panel, sigma)}
        methods = sorted({variant.partition(" ")[0] for variant in lines}, key=rank)
        present = [name for name in ("", *SETTINGS) if any(v.partition(" ")[2] == name for v in lines)]
        for place, method in enumerate(methods):
            colour, marker = theme.colour(method), MARKERS.get(method, "o")
            for group, setting in enumerate(present):
                row = lines.get(f"{method} {setting}".rstrip())
                if row is None:
                    continue
                x = group + 0.18 * (place - (len(methods) - 1) / 2)
                axes.plot(
                    [x + 0.06] * len(row.per_seed),
                    row.per_seed,
                    "o",
                    color=colour,
                    alpha=0.5,
                    markersize=2.6,
                    markeredgewidth=0,
                )
                axes.plot([x, x], _interval(row), color=colour, linewidth=1.6, alpha=0.8)
                axes.plot(x, row.accuracy, marker, color=colour, markersize=6.5, label=NAMES.get(method, method))
        axes.set_xticks(range(len(present)), [name or BASE for name in present])
        axes.set(xlim=(-0.55, len(present) - 0.45), ylabel="accuracy over chips, %")
        axes.set_title(f"{panel}, sigma {sigma:g}", fontsize=10, loc="left")
    handles, names = plots[0].get_legend_handles_labels()
    unique = dict(zip(names, handles))
    figure.legend(unique.values(), unique, loc="outside lower center", ncols=4, fontsize=9)
    figure.suptitle(
        f"Accuracy under each setting ({_with_seeds(rows)}; small dots: single seeds)", fontsize=11, x=0.01, ha="left"
    )
