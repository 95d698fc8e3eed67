"""A method's figure over training seeds and over chips: two intervals about two populations."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from nft_ext.metrics.distributions import t_half_width
from nft_ext.metrics.samples import sample


@dataclass(frozen=True)
class OverSeeds:
    """The outcome of `over_seeds`, in the units of its input. Intervals are 95 % half-widths.

    Attributes:
        mean: mean over all seeds and chips.
        seed_means: one mean per training seed.
        seed_ci95: interval of the mean over trainings, t(S-1) * sd(seed means) / sqrt(S). The replicates are training
            seeds. Population: networks trained by this method, on these chips. NaN for one seed.
        noise_ci95: interval of the mean over chips, t(R-1) * sd(chip means) / sqrt(R). The replicates are chips, each
            averaged over the seeds. Population: chips of this device, for these networks only. NaN for one chip.
        var_seed, var_chip, var_rest: parts of the variance of one value: from the training, from a chip common to all
            networks, and the remainder. Unbiased two-way estimates, each cut at 0. NaN for one seed or one chip.
        seeds, runs: S and R.
    """

    mean: float
    seed_means: tuple[float, ...]
    seed_ci95: float
    noise_ci95: float
    var_seed: float
    var_chip: float
    var_rest: float
    seeds: int
    runs: int

    def __str__(self) -> str:
        return (
            f"{self.mean:.5g} +- {self.seed_ci95:.2g} over {self.seeds} training seeds, "
            f"+- {self.noise_ci95:.2g} over {self.runs} chips of these networks"
        )


def over_seeds(values: np.ndarray) -> OverSeeds:
    """Mean of a method's figure, with one interval over training seeds, one over chips, and the parts of the variance.

    The model is y[s, r] = mean + training s + chip r + rest, all independent. With the mean squares MS of the two-way
    table: var_rest = MS_rest, var_seed = (MS_seed - MS_rest) / R, var_chip = (MS_chip - MS_rest) / S.

    The paper publishes the noise interval of one training. A claim about a method needs `seed_ci95`. A claim about a
    difference needs `compare_methods`.

    Args:
        values: [S, R], for example the accuracies of S trainings on R chips each; or [S], one figure per training. If
            the trainings share chips, column r is the same draw in every row.

    Returns:
        The mean, both intervals and the variance parts.

    Raises:
        ValueError: a wrong shape, NaN or infinity.
    """
    table = sample("values", values, (1, 2), "[seeds] or [seeds, runs]")
    table = table[:, None] if table.ndim == 1 else table
    seeds, runs = table.shape
    centred = table - table[0, 0]  # equal values then deviate by exactly 0
    by_seed, by_chip = centred.mean(axis=1), centred.mean(axis=0)
    var_seed = var_chip = var_rest = math.nan
    if seeds > 1 and runs > 1:
        rest = centred - by_seed[:, None] - by_chip + centred.mean()
        var_rest = float((rest**2).sum()) / ((seeds - 1) * (runs - 1))
        var_seed = max(0.0, float(by_seed.var(ddof=1)) - var_rest / runs)
        var_chip = max(0.0, float(by_chip.var(ddof=1)) - var_rest / seeds)
    return OverSeeds(
        mean=float(table[0, 0] + centred.mean()),
        seed_means=tuple((table[0, 0] + by_seed).tolist()),
        seed_ci95=_half_width(by_seed),
        noise_ci95=_half_width(by_chip),
        var_seed=var_seed,
        var_chip=var_chip,
        var_rest=var_rest,
        seeds=seeds,
        runs=runs,
    )


def _half_width(replicates: np.ndarray) -> float:
    n = len(replicates)
    return t_half_width(float(replicates.std(ddof=1)) / math.sqrt(n), n - 1) if n > 1 else math.nan
