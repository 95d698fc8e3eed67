"""Wilcoxon's signed rank test: is a sample of differences symmetric about zero?"""

from __future__ import annotations

import math

import numpy as np

from nft_ext.metrics.distributions import normal_two_sided

EXACT_UP_TO = 200  # differences; the exact distribution has at most 40,201 values


def signed_rank_p(differences: np.ndarray) -> float:
    """Wilcoxon's signed rank test. Zeros are left out, and tied values get the mean of their ranks.

    Up to 200 differences the p-value is exact: all sign patterns are equally likely, so the distribution of the sum of
    positive ranks is a convolution over ranks. Beyond 200 it is the normal approximation with variance sum(rank^2) / 4.

    Args:
        differences: float64 [n].

    Returns:
        The two-sided p-value; 1 if all differences are 0.
    """
    nonzero = differences[differences != 0]
    n = len(nonzero)
    if n == 0:
        return 1.0
    doubled = doubled_ranks(np.abs(nonzero))  # twice the mid-ranks are integers
    positive, total = int(doubled[nonzero > 0].sum()), int(doubled.sum())
    extreme = min(positive, total - positive)
    if n > EXACT_UP_TO:
        return normal_two_sided((2 * extreme - total) / math.sqrt(float((doubled.astype(float) ** 2).sum())))
    weight = np.zeros(total + 1)  # weight[s]: probability that the doubled positive ranks sum to s
    weight[0] = 1.0
    for rank in doubled:
        weight[rank:] = 0.5 * (weight[rank:] + weight[: total + 1 - rank])
        weight[:rank] *= 0.5
    return min(1.0, 2 * float(weight[: extreme + 1].sum()))


def doubled_ranks(values: np.ndarray) -> np.ndarray:
    """int64 [n]: twice the rank of each value, counted from 1. Tied values share the mean of their ranks."""
    _, group, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return (2 * last - count + 1)[group]  # first + last rank of the group
