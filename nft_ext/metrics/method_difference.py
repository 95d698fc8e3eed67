"""The difference between two training methods. The replicates are training seeds, never chips."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from nft_ext._common.checks import boolean
from nft_ext.metrics.distributions import t_half_width, t_two_sided
from nft_ext.metrics.paired import paired
from nft_ext.metrics.samples import row_means, sample


@dataclass(frozen=True)
class MethodDifference:
    """The outcome of `compare_methods`: method a minus method b.

    The population is trainings by either method, evaluated on these chips and images.

    Attributes:
        mean: difference of the means over training seeds.
        ci95: half-width of the 95 % interval of that difference.
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
    """Tests whether method a trains better networks than method b.

    Each training is first averaged over its chips: 200 chips of one network are one replicate of its method.

    Args:
        a, b: [S_a] and [S_b], one figure per training; or [S, R], which is averaged over chips. S >= 2 each.
        shared_seeds: True if training s of a and of b started from the same weights and saw the same batches. A paired
            t test then removes the common effect of the seed. False: Welch's test with Satterthwaite's degrees of
            freedom, which allows different variances.

    Returns:
        The difference of the means, its 95 % interval and its p-value.

    Raises:
        ValueError: shared_seeds is no bool, a wrong shape, fewer than two trainings, NaN or infinity, shared seeds with
            S_a != S_b.
    """
    boolean("shared_seeds", shared_seeds)
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
