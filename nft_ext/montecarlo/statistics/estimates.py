"""Computes the report's statistics from the tallies of chips, under either protocol."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from nft_ext.montecarlo.statistics.figure import Figure
from nft_ext.montecarlo.statistics.precision import Precision, precision_of
from nft_ext.montecarlo.statistics.run_statistic import RunStatistic
from nft_ext.montecarlo.statistics.slice_estimate import SliceEstimate, between, between_chips
from nft_ext.montecarlo.statistics.slice_statistic import SliceStatistic
from nft_ext.montecarlo.statistics.slices import Slices
from nft_ext.montecarlo.statistics.tallies import Tallies


def run_statistics(
    figures: Sequence[Figure], tallies: Tallies, first: Precision | None = None
) -> dict[str, RunStatistic]:
    """Statistics of chips that saw all examples, by name.

    Args:
        figures: the metrics.
        tallies: of all chips.
        first: precision of the first figure if a stopping rule fixed it.
    """
    found = {}
    for number, figure in enumerate(figures):
        fixed = first if number == 0 else None
        if fixed is None and figure.share:  # the number of items enters the interval of a share
            fixed = precision_of(figure.estimate(tallies, 1, whole=True), share=True)
        found[figure.name] = RunStatistic(
            figure.per_run(tallies),
            figure.pooled(tallies),
            higher_is_better=figure.higher_is_better,
            fixed=fixed,
            share=figure.share,
        )
    return found


def slice_statistics(
    figures: Sequence[Figure], tallies: Tallies, slices: Slices, first: Precision | None = None
) -> dict[str, RunStatistic] | dict[str, SliceStatistic]:
    """Statistics of chips that saw one slice each, by name. The arguments are as for `run_statistics`.

    One slice per tiling is the whole set, so its chips get the statistics of whole sets, with quantiles.
    """
    if slices.count == 1:
        return run_statistics(figures, tallies, first)
    found = {}
    for number, figure in enumerate(figures):
        of = figure.estimate(tallies, slices.count, whole=False)
        precision = first if first is not None and number == 0 else precision_of(of, figure.share)
        variance = _between(figure, of, tallies, slices)
        found[figure.name] = SliceStatistic(
            figure.per_run(tallies),
            figure.pooled(tallies),
            higher_is_better=figure.higher_is_better,
            std=math.sqrt(variance if not variance < 0 else 0.0),  # an estimate below 0 counts as 0; NaN stays NaN
            precision=precision,
            share=figure.share,
        )
    return found


def _between(figure: Figure, found: SliceEstimate, tallies: Tallies, slices: Slices) -> float:
    """B2, the variance over chips of the figure on all examples."""
    if figure.right_or_wrong:
        sums = figure.sums(tallies)
        return float(between_chips(found, sums[:, 0], sums[:, 1], slices.count, slices.images))
    j = np.arange(len(tallies)) % slices.count
    sizes = (j + 1) * slices.images // slices.count - j * slices.images // slices.count
    return float(between(found, figure.spread(tallies, sizes), slices.count, slices.images))
