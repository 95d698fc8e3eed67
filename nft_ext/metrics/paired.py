"""Paired tests: two checkpoints on common chips, or two methods on common training seeds."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from nft_ext._common.checks import fail
from nft_ext.metrics.distributions import t_half_width, t_two_sided
from nft_ext.metrics.samples import sample
from nft_ext.metrics.wilcoxon import signed_rank_p


@dataclass(frozen=True)
class Paired:
    """The outcome of `paired`: a minus b.

    Attributes:
        mean: mean of the differences.
        ci95: half-width of the 95 % interval of that mean, t(n-1) * sd / sqrt(n).
        t, p_t: Student's statistic and its two-sided p-value. If all differences are equal, t is infinite, or NaN with
            p = 1 if they are 0.
        p_wilcoxon: two-sided p-value of the signed rank test, which assumes symmetry but not normality.
        n: number of pairs.
    """

    mean: float
    ci95: float
    t: float
    p_t: float
    p_wilcoxon: float
    n: int

    def __str__(self) -> str:
        return (
            f"difference {self.mean:+.5g} +- {self.ci95:.2g} (95 %, {self.n} pairs), t test p = {self.p_t:.3g}, "
            f"Wilcoxon p = {self.p_wilcoxon:.3g}"
        )


def paired(a: np.ndarray, b: np.ndarray) -> Paired:
    """Tests whether `a` and `b` differ, pair by pair.

    Pairs on chips: a[r] and b[r] are two checkpoints on the same seed and draw. The outcome speaks about these two
    checkpoints over all chips of the device. It does not speak about the methods that trained them.
    Pairs on training seeds: a[s] and b[s] are two methods with the same initial weights and data order. The outcome
    speaks about the methods (`compare_methods`).

    Args:
        a, b: [n] each, n >= 2; pair i at index i.

    Returns:
        The mean difference with its interval, and the p-values of the t test and of Wilcoxon's signed rank test.

    Raises:
        ValueError: a wrong shape, fewer than two pairs, NaN or infinity. EKL is NaN for a chip without correct images;
            leave such pairs out.
    """
    a, b = sample("a", a, (1,), "[n]", least=2), sample("b", b, (1,), "[n]", least=2)
    if len(a) != len(b):
        fail("b", f"must have as many values as a, {len(a)}", f"{len(b)} values")
    d = a - b
    n = len(d)
    # Measured from the first difference, equal differences deviate by exactly 0, without the mean's rounding.
    error = float(np.std(d - d[0], ddof=1)) / math.sqrt(n)
    mean = float(d[0]) if error == 0 else float(d.mean())
    if error == 0:
        t, p = (math.copysign(math.inf, mean), 0.0) if mean else (math.nan, 1.0)
    else:
        t = mean / error
        p = t_two_sided(t, n - 1)
    return Paired(mean, t_half_width(error, n - 1), t, p, signed_rank_p(d), n)
