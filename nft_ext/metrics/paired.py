"""Two checkpoints on common chips, or two methods on common training seeds: tests on the pairs' differences."""

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
    """What `paired` found about a - b.

    Attributes:
        mean: of the differences.
        ci95: half-width of its 95 % interval, t(n-1) * sd / sqrt(n).
        t, p_t: Student's statistic and its two-sided p-value. t is infinite where all differences are the same and not
            0, and NaN with p = 1 where all are 0.
        p_wilcoxon: two-sided p-value of the signed rank test, which asks for symmetry, not for normality.
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

    With a[r], b[r] the accuracies of two checkpoints on chip r (the same seed and draw), the replicates are chips: the
    outcome speaks about these two checkpoints over all chips of that device, and not about the methods that
    trained them. With a[s], b[s] one figure a training seed s, both methods sharing initial weights and data
    order, the replicates are trainings, and the outcome speaks about the methods (`compare_methods`).

    Args:
        a, b: [n] each, n >= 2, pair i at index i.

    Raises:
        ValueError: other shapes, fewer than two pairs, NaN or infinity (EKL is NaN where a chip has nothing right:
            leave such pairs out knowingly).
    """
    a, b = sample("a", a, (1,), "[n]", least=2), sample("b", b, (1,), "[n]", least=2)
    if len(a) != len(b):
        fail("b", f"must have one value for each of the {len(a)} of a", f"{len(b)} values")
    d = a - b
    n = len(d)
    # Taken from the first one, equal differences deviate by nothing, not by the mean's rounding.
    error = float(np.std(d - d[0], ddof=1)) / math.sqrt(n)
    mean = float(d[0]) if error == 0 else float(d.mean())
    if error == 0:
        t, p = (math.copysign(math.inf, mean), 0.0) if mean else (math.nan, 1.0)
    else:
        t = mean / error
        p = t_two_sided(t, n - 1)
    return Paired(mean, t_half_width(error, n - 1), t, p, signed_rank_p(d), n)
