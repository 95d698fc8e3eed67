"""Quantiles of chips by order statistics, and bounds on chips that were not seen."""

from __future__ import annotations

import math

import numpy as np

CONFIDENCE = 0.95


def order_statistic_ranks(n: int, q: float) -> tuple[int, int]:
    """Ranks (low, high), 1-based, whose order statistics enclose the q-quantile with at least 95 %.

    For any distribution, the number of n independent values below the q-quantile is Binomial(n, q). Each tail gets at
    most 2.5 %. Rank 0 or n + 1 means that n values give no such bound.
    """
    tail = (1 - CONFIDENCE) / 2
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1.0, n + 1)))])
    k = np.arange(n + 1)
    log_pmf = log_factorial[n] - log_factorial - log_factorial[::-1]
    log_pmf = log_pmf + k * math.log(q) + (n - k) * math.log1p(-q)
    at_most = np.cumsum(np.exp(log_pmf))  # at_most[k] = P(Binomial <= k)
    # P(rank `low` lies above the quantile) = at_most[low - 1]; below rank `high`: at_most[high - 1].
    low = int(np.searchsorted(at_most, tail, side="right"))
    high = int(np.searchsorted(at_most[:n], 1 - tail, side="left")) + 1
    return low, high


def unseen_share(n: int) -> float:
    """The share q of all chips that may be unlike any of n chips, at most, with 95 % confidence.

    No chip of n belongs to a kind with the share q with probability (1 - q)^n, which is 5 % at q = 1 - 0.05^(1/n). The
    kind may be the chips that are worse than the worst of n.
    """
    return 1 - (1 - CONFIDENCE) ** (1 / n)
