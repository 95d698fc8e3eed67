"""Tests on pairs and the distributions behind them, against SciPy and against enumeration."""

import itertools
import math

import numpy as np
import pytest

from nft_ext.metrics import paired
from nft_ext.metrics.distributions import (
    beta_quantile,
    incomplete_beta,
    normal_two_sided,
    student_t_quantile,
    student_t_tail,
    t_two_sided,
)
from nft_ext.metrics.wilcoxon import doubled_ranks, signed_rank_p

stats = pytest.importorskip("scipy.stats", reason="the expected values are SciPy's (extra: test)")


# ---- distributions ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("a, b", [(0.5, 0.5), (1, 1), (2, 7), (7, 2), (0.5, 100), (300, 40), (5000, 5000)])
def test_incomplete_beta_and_its_quantile(a, b):
    for x in (1e-9, 0.01, 0.3, 0.5, 0.77, 0.999):
        assert incomplete_beta(a, b, x) == pytest.approx(stats.beta.cdf(x, a, b), rel=1e-9, abs=1e-15)
    for p in (1e-6, 0.025, 0.5, 0.975):
        assert beta_quantile(p, a, b) == pytest.approx(stats.beta.ppf(p, a, b), rel=1e-8)
    assert (incomplete_beta(a, b, 0), incomplete_beta(a, b, 1)) == (0, 1)


@pytest.mark.parametrize("df", [1, 2.5, 9, 199, 1e5])
def test_students_t(df):
    for t in (0.0, 0.1, 1.0, 2.3, 8.0, 40.0):
        assert student_t_tail(t, df) == pytest.approx(stats.t.sf(t, df), rel=1e-9)
        assert student_t_tail(-t, df) == pytest.approx(stats.t.sf(-t, df), rel=1e-9)
        assert t_two_sided(-t, df) == pytest.approx(2 * stats.t.sf(t, df), rel=1e-9)
    assert student_t_tail(math.inf, df) == 0
    assert student_t_quantile(0.975, df) == pytest.approx(stats.t.ppf(0.975, df), rel=1e-9)
    assert math.isnan(t_two_sided(math.nan, df))


def test_normal_tail():
    assert normal_two_sided(-1.96) == pytest.approx(2 * stats.norm.sf(1.96), rel=1e-12)


# ---- Wilcoxon -----------------------------------------------------------------------------------------------------


def by_enumeration(d):
    """Share of the 2^n sign patterns whose smaller rank sum is at most the observed one."""
    ranks = stats.rankdata(np.abs(d))
    least = min(ranks[d > 0].sum(), ranks[d < 0].sum())
    sums = [sum(r for r, s in zip(ranks, signs) if s) for signs in itertools.product((0, 1), repeat=len(d))]
    return np.mean([min(s, ranks.sum() - s) <= least for s in sums])


@pytest.mark.parametrize("seed", range(4))
def test_signed_ranks_are_exact_with_ties(seed):
    d = np.random.default_rng(seed).integers(-4, 6, 11).astype(float)
    d = d[d != 0]
    assert signed_rank_p(d) == pytest.approx(by_enumeration(d), rel=1e-12)
    assert signed_rank_p(np.concatenate([d, np.zeros(3)])) == signed_rank_p(d)


@pytest.mark.parametrize("n, method", [(5, "exact"), (40, "exact"), (200, "exact"), (400, "approx")])
def test_signed_ranks_agree_with_scipy(n, method):
    d = np.random.default_rng(n).normal(0.1, 1, n)
    assert signed_rank_p(d) == pytest.approx(stats.wilcoxon(d, method=method).pvalue, rel=1e-9)


def test_ranks_of_ties_are_shared():
    values = np.array([3.0, 1.0, 3.0, 2.0, 3.0])
    np.testing.assert_array_equal(doubled_ranks(values), 2 * stats.rankdata(values))


# ---- paired -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 10, 200])
def test_paired_is_the_t_test_and_the_wilcoxon_test_of_the_differences(n):
    rng = np.random.default_rng(n)
    chip = rng.normal(0.9, 0.05, n)  # what both checkpoints share
    a, b = chip + rng.normal(0, 0.01, n), chip + rng.normal(0.004, 0.01, n)
    found, expected = paired(a, b), stats.ttest_rel(a, b)
    assert (found.t, found.p_t) == pytest.approx((expected.statistic, expected.pvalue), rel=1e-9)
    low, high = expected.confidence_interval(0.95)
    assert (found.mean - found.ci95, found.mean + found.ci95) == pytest.approx((low, high), rel=1e-9)
    assert found.p_wilcoxon == pytest.approx(stats.wilcoxon(a - b, method="exact").pvalue, rel=1e-9)
    assert found.n == n and f"{n} pairs" in str(found)


def test_pairs_that_differ_by_nothing_or_by_a_constant():
    a = np.array([0.3, 0.1, 0.7])
    same = paired(a, a)
    assert (same.mean, same.ci95, same.p_t, same.p_wilcoxon) == (0, 0, 1, 1) and math.isnan(same.t)
    shifted = paired([3.0, 1.0, 2.0], [4.0, 2.0, 3.0])
    assert (shifted.mean, shifted.ci95, shifted.t, shifted.p_t) == (-1, 0, -math.inf, 0)
    assert shifted.p_wilcoxon == 0.25


@pytest.mark.parametrize(
    "a, b, words",
    [
        ([1.0], [1.0], r"a: must have shape \[n\] with at least 2"),
        ([1.0, 2.0], [1.0, 2.0, 3.0], "b: must have as many values as a, 2; got 3 values"),
        ([[1.0, 2.0]], [1.0, 2.0], r"a: must have shape \[n\]; got shape \[1, 2\]"),
        ([1.0, math.nan], [1.0, 2.0], r"a: must be finite; got nan at \[1\]"),
        ([1.0, 2.0], ["x", "y"], "b: must be numbers"),
    ],
)
def test_bad_pairs_are_refused(a, b, words):
    with pytest.raises(ValueError, match=words):
        paired(a, b)
