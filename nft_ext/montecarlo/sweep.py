"""Accuracy against sigma: the same chips at every point, so that a curve moves with sigma alone."""

from __future__ import annotations

from typing import Sequence

from torch import nn

from nft_ext.checks import fail, number
from nft_ext.montecarlo.evaluate import monte_carlo
from nft_ext.montecarlo.images import read_data
from nft_ext.montecarlo.report import MonteCarloReport


def sigma_sweep(
    model: nn.Module, data, sigmas: Sequence[float], runs: int = 200, seed: int = 0, **options
) -> list[MonteCarloReport]:
    """One `monte_carlo` report a sigma, in the order given, on the same chips (the same normals).

    sigmas: values in the convention of the layers' device. data is read once.
    options: further arguments of `monte_carlo`.

    An interrupt ends the sweep: the reports so far are returned, the last marked `interrupted` if
    it had at least two runs; with nothing to return it is passed on.
    Raises ValueError for an empty or invalid `sigmas`, and what `monte_carlo` raises.
    """
    sigmas = [number("sigmas", sigma, 0.0) for sigma in sigmas]
    if not sigmas:
        fail("sigmas", "must name at least one sigma", "none")
    data = read_data(data)
    reports: list[MonteCarloReport] = []
    for sigma in sigmas:
        try:
            reports.append(monte_carlo(model, data, runs=runs, seed=seed, sigma=sigma, **options))
        except KeyboardInterrupt:
            if not reports:
                raise
            break
        if reports[-1].interrupted:
            break
    return reports
