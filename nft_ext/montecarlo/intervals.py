"""The quantiles behind the report's intervals: Student's t, and order statistics. No SciPy needed."""

from __future__ import annotations

import functools
import math
from statistics import NormalDist

import numpy as np

CONFIDENCE = 0.95


@functools.lru_cache(maxsize=4096)
def student_t_quantile(p: float, df: float) -> float:
    """The p-quantile of Student's t with `df` > 0 degrees of freedom (relative error below 1e-9 from p = 0.6 on).

    Bisection on the distribution function, started from a bracket around the normal quantile: the
    one place where speed does not matter and a wrong digit would.
    """
    if p == 0.5:
        return 0.0
    if p < 0.5:
        return -student_t_quantile(1 - p, df)
    low, high = 0.0, max(1.0, NormalDist().inv_cdf(p))
    while _student_t_tail(high, df) > 1 - p:
        low, high = high, 2 * high
    while high - low > 1e-13 * high:
        middle = 0.5 * (low + high)
        if not low < middle < high:
            break
        if _student_t_tail(middle, df) > 1 - p:
            low = middle
        else:
            high = middle
    return 0.5 * (low + high)


def _student_t_tail(t: float, df: float) -> float:
    """P(T > t) for t >= 0: half of I_x(df/2, 1/2) at x = df / (df + t^2)."""
    x, y = df / (df + t * t), t * t / (df + t * t)
    a, b = 0.5 * df, 0.5
    # The continued fraction converges fast below the mean of the beta distribution only.
    if x < (a + 1) / (a + b + 2):
        return 0.5 * _incomplete_beta(a, b, x, y)
    return 0.5 * (1 - _incomplete_beta(b, a, y, x))


def _incomplete_beta(a: float, b: float, x: float, y: float) -> float:
    """I_x(a, b), y = 1 - x: its continued fraction (Abramowitz & Stegun 26.5.8, modified Lentz)."""
    if x == 0:
        return 0.0
    front = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log(y)
    )
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1))
    fraction = d
    for m in range(1, 10_000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1 / (1 + term * d)
            c = 1 + term / c
            fraction *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return front * fraction / a


def mean_half_width(std: float, n: int) -> float:
    """Half of the 95 % interval of the mean of n independent runs: t(n-1) * std / sqrt(n)."""
    if n < 2:
        return math.nan
    return student_t_quantile(0.5 + CONFIDENCE / 2, n - 1) * std / math.sqrt(n)


def order_statistic_ranks(n: int, q: float) -> tuple[int, int]:
    """Ranks (low, high), 1-based, whose order statistics enclose the q-quantile at 95 % or more.

    The number of n independent draws below the q-quantile is Binomial(n, q), whatever their
    distribution; each tail is given at most 2.5 %. Rank 0 or n + 1 means: n draws give no such bound.
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


def extreme_bounds_quantile(n: int) -> float:
    """The share q of chips that may be worse than the worst of n, with 95 % confidence.

    All n chips miss the worst share q with probability (1 - q)^n; that is 5 % at q = 1 - 0.05^(1/n).
    """
    return 1 - (1 - CONFIDENCE) ** (1 / n)
