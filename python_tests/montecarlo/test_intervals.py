"""Student's t quantile and the order-statistic intervals, against tables and exact probabilities."""

import math

import pytest

from nft_ext.metrics.distributions import student_t_quantile
from nft_ext.montecarlo.statistics.intervals import (
    order_statistic_ranks,
    unseen_share,
)

# Any printed table of Student's t: (p, degrees of freedom, quantile).
TABLE = [
    (0.975, 1, 12.7062),
    (0.975, 2, 4.3027),
    (0.975, 5, 2.5706),
    (0.975, 10, 2.2281),
    (0.975, 30, 2.0423),
    (0.975, 120, 1.9799),
    (0.95, 4, 2.1318),
    (0.995, 20, 2.8453),
    (0.9995, 3, 12.924),
]


@pytest.mark.parametrize("p, df, expected", TABLE)
def test_t_quantile_agrees_with_the_printed_table(p, df, expected):
    assert student_t_quantile(p, df) == pytest.approx(expected, rel=4e-5)


def test_t_quantile_has_closed_forms_at_one_and_two_degrees_of_freedom():
    for p in (0.6, 0.9, 0.975, 0.9999):
        assert student_t_quantile(p, 1) == pytest.approx(math.tan(math.pi * (p - 0.5)), rel=1e-10)
        closed = (2 * p - 1) * math.sqrt(2 / (4 * p * (1 - p)))
        assert student_t_quantile(p, 2) == pytest.approx(closed, rel=1e-10)


def test_t_quantile_agrees_with_scipy():
    stats = pytest.importorskip("scipy.stats", reason="SciPy is the reference of this test only")
    for df in (1, 2, 3, 7, 19.5, 63, 199, 9_999, 1e6):
        for p in (0.6, 0.8, 0.975, 0.9995):
            assert student_t_quantile(p, df) == pytest.approx(stats.t.ppf(p, df), rel=1e-9)


def test_t_quantile_is_odd():
    assert student_t_quantile(0.5, 7) == 0
    assert student_t_quantile(0.1, 7) == -student_t_quantile(0.9, 7)


def binomial_cdf(k, n, q):
    return sum(math.comb(n, i) * q**i * (1 - q) ** (n - i) for i in range(k + 1))


@pytest.mark.parametrize("n", [2, 10, 50, 200])
@pytest.mark.parametrize("q", [0.01, 0.05, 0.5, 0.95])
def test_order_statistics_enclose_the_quantile_at_95_percent_and_no_wider_than_needed(n, q):
    low, high = order_statistic_ranks(n, q)
    # Each side misses with at most 2.5 %, and one rank further in would miss with more.
    if low > 0:
        assert binomial_cdf(low - 1, n, q) <= 0.025
    assert binomial_cdf(low, n, q) > 0.025
    if high <= n:
        assert binomial_cdf(high - 1, n, q) >= 0.975
    assert high == 1 or binomial_cdf(high - 2, n, q) < 0.975


def test_200_runs_bound_the_5_percent_quantile_on_both_sides_but_the_1_percent_only_above():
    assert order_statistic_ranks(200, 0.05)[0] >= 1
    assert order_statistic_ranks(200, 0.01)[0] == 0


def test_the_minimum_of_200_bounds_the_1_5_percent_quantile():
    q = unseen_share(200)
    assert q == pytest.approx(0.015, abs=2e-4)
    assert (1 - q) ** 200 == pytest.approx(0.05)
