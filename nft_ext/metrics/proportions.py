"""Counts out of trials: the Clopper-Pearson interval of one count, and Fisher's exact test between two."""

from __future__ import annotations

import math

from nft_ext._common.checks import fail, integer, number
from nft_ext.metrics.distributions import beta_quantile


def clopper_pearson(count: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of a probability from `count` successes in `trials` independent trials.

    low is the (1-c)/2 quantile of Beta(count, trials - count + 1), and 0 for count = 0. high is the (1+c)/2 quantile
    of Beta(count + 1, trials - count), and 1 for count = trials (Clopper & Pearson, Biometrika 1934).

    Args:
        count: successes, in 0..trials.
        trials: number of trials, >= 1.
        confidence: c, in (0, 1).

    Returns:
        (low, high), which covers the probability with at least `confidence`.

    Raises:
        ValueError: trials < 1, count outside 0..trials, confidence outside (0, 1).
    """
    trials = integer("trials", trials, 1)
    count = integer("count", count, 0, trials)
    if not 0 < number("confidence", confidence) < 1:
        fail("confidence", "must be > 0 and < 1", confidence)
    tail = (1 - confidence) / 2
    low = 0.0 if count == 0 else beta_quantile(tail, count, trials - count + 1)
    high = 1.0 if count == trials else beta_quantile(1 - tail, count + 1, trials - count)
    return low, high


def fisher_exact(count_a: int, trials_a: int, count_b: int, trials_b: int) -> float:
    """Fisher's exact test: do count_a of trials_a and count_b of trials_b have the same probability?

    The p-value is the probability, given all four margins, of all tables that are at most as likely as this one. It is
    summed in integers, so rounding decides no tie.

    Args:
        count_a, trials_a: successes and trials of a.
        count_b, trials_b: successes and trials of b.

    Returns:
        The two-sided p-value.

    Raises:
        ValueError: trials < 1, or a count outside 0..trials.
    """
    trials_a, trials_b = integer("trials_a", trials_a, 1), integer("trials_b", trials_b, 1)
    count_a, count_b = integer("count_a", count_a, 0, trials_a), integer("count_b", count_b, 0, trials_b)
    total = count_a + count_b
    ways = {
        k: math.comb(trials_a, k) * math.comb(trials_b, total - k)
        for k in range(max(0, total - trials_b), min(total, trials_a) + 1)
    }
    seen = ways[count_a]
    return sum(w for w in ways.values() if w <= seen) / math.comb(trials_a + trials_b, total)
