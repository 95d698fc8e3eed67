"""Wilcoxon's signed rank test: is a sample of differences symmetric about zero?"""

from __future__ import annotations

import math

import numpy as np

from nft_ext.metrics.distributions import normal_two_sided

EXACT_UP_TO = 200  # differences; the exact distribution then has at most 40,201 values


def signed_rank_p(differences: np.ndarray) -> float:
    """Two-sided p-value for float64 `differences` [n]; zeros are left out (Wilcoxon), ties get the mean of their ranks.

    Exact up to 200 differences, given the ranks: every sign pattern is as likely as any other, so the sum of the
    positive ranks is a sum of independent coins, convolved rank by rank. The normal approximation beyond, its variance
    being sum(rank^2) / 4, which is right with ties. 1 if nothing but zeros is left.
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
    """int64 [n]: twice the rank (from 1) of each value, tied values sharing the mean of theirs."""
    _, group, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return (2 * last - count + 1)[group]  # first + last rank of the group
