"""A method's figure over training seeds and over chips: two intervals that speak about two populations."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from nft_ext.metrics.distributions import t_half_width
from nft_ext.metrics.samples import sample


@dataclass(frozen=True)
class OverSeeds:
    """What `over_seeds` found, in the units of its input; intervals are half-widths at 95 %.

    Attributes:
        mean: over all seeds and runs.
        seed_means: one value per training seed.
        seed_ci95: of the mean over trainings, t(S-1) * sd(seed means) / sqrt(S). The replicates are training seeds.
            Population: networks that this recipe trains, on the chips evaluated. NaN with one seed.
        noise_ci95: of the mean over chips, t(R-1) * sd(chip means) / sqrt(R), a chip mean being over the seeds. The
            replicates are chips. Population: chips of this device, for the networks at hand. It says nothing about
            another training. It holds whether or not the networks shared their chips. NaN with one run.
        var_seed, var_chip, var_rest: parts of one run's variance: the training; the chip where it is common to all
            networks; the remainder (chips of their own, or what a chip does to one network and not to another).
            Unbiased two-way estimates, each cut at 0. All are NaN with one seed or one run.
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
    """Mean of a method's figure with an interval over training seeds and one over chips, and the variance split.

    The model is y[s, r] = mean + training s + chip r + rest, all independent. With the mean squares MS of the two-way
    table: var_rest = MS_rest, var_seed = (MS_seed - MS_rest) / R, var_chip = (MS_chip - MS_rest) / S.

    The published interval of the paper is the noise interval of one training; a claim about a method needs `seed_ci95`,
    or `compare_methods` for a difference.

    Args:
        values: [S, R], the accuracies (say) of S trainings on R runs each, run r of every row on the same draw where
            chips are shared; or [S], one figure a training.

    Raises:
        ValueError: other shapes, NaN or infinity.
    """
    table = sample("values", values, (1, 2), "[seeds] or [seeds, runs]")
    table = table[:, None] if table.ndim == 1 else table
    seeds, runs = table.shape
    centred = table - table[0, 0]  # equal values then deviate by nothing
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
