"""A claim about two training methods: the replicates are training seeds, never chips."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from nft_ext.metrics.distributions import t_half_width, t_two_sided
from nft_ext.metrics.paired import paired
from nft_ext.metrics.samples import row_means, sample


@dataclass(frozen=True)
class MethodDifference:
    """What `compare_methods` found about method a minus method b.

    The population is trainings by either recipe, on the chips and images that they were evaluated with.

    Attributes:
        mean: difference of the means over training seeds.
        ci95: half-width of its 95 % interval.
        t, df, p: Student's statistic, its degrees of freedom, the two-sided p-value.
        test: "paired t" or "Welch".
        seeds: number of training seeds of a and of b.
    """

    mean: float
    ci95: float
    t: float
    df: float
    p: float
    test: str
    seeds: tuple[int, int]

    def __str__(self) -> str:
        return (
            f"difference {self.mean:+.5g} +- {self.ci95:.2g} (95 %, {self.seeds[0]} and {self.seeds[1]} training "
            f"seeds), {self.test} p = {self.p:.3g}"
        )


def compare_methods(a: np.ndarray, b: np.ndarray, *, shared_seeds: bool) -> MethodDifference:
    """Does method a train better networks than method b?

    Chips are averaged within a training first: two hundred chips of one network are one replicate of its method.

    Args:
        a, b: [S_a], [S_b], one figure a training; or [S, R], which is averaged over runs. At least two trainings each.
        shared_seeds: True where training s of a and of b began with the same weights and saw the same batches: a paired
            t test, which takes out what both owe to the seed. False: Welch's test (variances may differ),
            Satterthwaite's degrees of freedom.

    Raises:
        ValueError: other shapes, too few trainings, NaN or infinity, shared seeds with S_a other than S_b.
    """
    symbols = "[seeds] or [seeds, runs]"
    a, b = (row_means(sample(name, v, (1, 2), symbols, least=2)) for name, v in (("a", a), ("b", b)))
    if shared_seeds:
        found = paired(a, b)
        return MethodDifference(found.mean, found.ci95, found.t, found.n - 1, found.p_t, "paired t", (len(a), len(b)))
    parts = [float((v - v[0]).var(ddof=1)) / len(v) for v in (a, b)]
    mean, error = float(a.mean() - b.mean()), math.sqrt(sum(parts))
    if error == 0:
        t, p = (math.copysign(math.inf, mean), 0.0) if mean else (math.nan, 1.0)
        return MethodDifference(mean, 0.0, t, len(a) + len(b) - 2, p, "Welch", (len(a), len(b)))
    df = sum(parts) ** 2 / sum(part**2 / (len(v) - 1) for part, v in zip(parts, (a, b)))
    t = mean / error
    return MethodDifference(mean, t_half_width(error, df), t, df, t_two_sided(t, df), "Welch", (len(a), len(b)))
