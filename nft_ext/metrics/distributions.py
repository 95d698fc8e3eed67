"""The distributions behind intervals and tests: incomplete beta, Student's t, normal; without SciPy."""

from __future__ import annotations

import functools
import math
from statistics import NormalDist

_TERMS = 10_000  # limit of the continued fraction, which takes about sqrt(a + b) terms


def incomplete_beta(a: float, b: float, x: float, y: float | None = None) -> float:
    """The regularized incomplete beta function I_x(a, b) = P(Beta(a, b) <= x).

    Args:
        a, b: parameters, > 0.
        x: in [0, 1].
        y: 1 - x. Pass it if x is so near 1 that the difference would lose digits.

    Returns:
        The probability; its relative error is below 1e-9 for a + b up to 1e6.
    """
    y = 1 - x if y is None else y
    if x <= 0 or y <= 0:
        return 0.0 if x <= 0 else 1.0
    # The continued fraction converges fast only below the distribution's mean.
    return _below_mean(a, b, x, y) if x < (a + 1) / (a + b + 2) else 1 - _below_mean(b, a, y, x)


def _below_mean(a: float, b: float, x: float, y: float) -> float:
    """I_x(a, b) with y = 1 - x, by the continued fraction (Abramowitz & Stegun 26.5.8, modified Lentz)."""
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log(y))
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1))
    fraction = d
    for m in range(1, _TERMS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1 / (1 + term * d)
            c = 1 + term / c
            fraction *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return front * fraction / a


def beta_quantile(p: float, a: float, b: float) -> float:
    """The p-quantile of Beta(a, b) for 0 < p < 1, by bisection of `incomplete_beta`."""
    low, high = 0.0, 1.0
    while high - low > 1e-14 * high:
        middle = 0.5 * (low + high)
        if not low < middle < high:
            break
        if incomplete_beta(a, b, middle) < p:
            low = middle
        else:
            high = middle
    return 0.5 * (low + high)


def student_t_tail(t: float, df: float) -> float:
    """P(T > t) of Student's t with `df` > 0 degrees of freedom.

    For t >= 0 it is I_x(df/2, 1/2) / 2 at x = df / (df + t^2).
    """
    if t < 0:
        return 1 - student_t_tail(-t, df)
    if math.isinf(t):
        return 0.0
    x, y = df / (df + t * t), t * t / (df + t * t)
    return 0.5 * incomplete_beta(0.5 * df, 0.5, x, y)


@functools.lru_cache(maxsize=4096)
def student_t_quantile(p: float, df: float) -> float:
    """The p-quantile of Student's t with `df` > 0 degrees of freedom; relative error below 1e-9 for p >= 0.6.

    Bisection of the distribution function. The bracket starts at the normal quantile.
    """
    if p == 0.5:
        return 0.0
    if p < 0.5:
        return -student_t_quantile(1 - p, df)
    low, high = 0.0, max(1.0, NormalDist().inv_cdf(p))
    while student_t_tail(high, df) > 1 - p:
        low, high = high, 2 * high
    while high - low > 1e-13 * high:
        middle = 0.5 * (low + high)
        if not low < middle < high:
            break
        if student_t_tail(middle, df) > 1 - p:
            low = middle
        else:
            high = middle
    return 0.5 * (low + high)


def normal_two_sided(z: float) -> float:
    """P(|Z| >= |z|) of the standard normal."""
    return math.erfc(abs(z) / math.sqrt(2))


def t_two_sided(t: float, df: float) -> float:
    """P(|T| >= |t|) of Student's t; NaN for NaN."""
    return math.nan if math.isnan(t) else 2 * student_t_tail(abs(t), df)


def t_half_width(standard_error: float, df: float, confidence: float = 0.95) -> float:
    """Half-width of the interval of a mean whose standard error has `df` degrees of freedom; NaN for df = 0."""
    return student_t_quantile(0.5 + confidence / 2, df) * standard_error if df > 0 else math.nan
