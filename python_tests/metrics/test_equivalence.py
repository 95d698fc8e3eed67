"""The test of equality: what it proves, and that few or scattered trainings prove nothing."""

import math

import numpy as np
import pytest

from nft_ext.metrics import compare_methods, equivalence

stats = pytest.importorskip("scipy.stats", reason="the expected values are SciPy's (extra: test)")


def one_sided(a, b, margin, paired):
    """The larger p of SciPy's two one-sided tests of a against b -+ margin."""
    test = stats.ttest_rel if paired else lambda *args, **how: stats.ttest_ind(*args, equal_var=False, **how)
    return max(
        test(a, b - margin, alternative="greater").pvalue,
        test(a, b + margin, alternative="less").pvalue,
    )


@pytest.mark.parametrize("shared", [True, False], ids=["paired", "Welch"])
@pytest.mark.parametrize("shift", [-1.5, 0.0, 0.7, 4.0])
def test_p_is_the_larger_of_two_one_sided_t_tests(shared, shift):
    rng = np.random.default_rng(0)
    b = rng.normal(90, 1, 8)
    a = b + shift + rng.normal(0, 0.8, 8)
    found = equivalence(a, b, margin=2.0, shared_seeds=shared)
    assert found.p == pytest.approx(one_sided(a, b, 2.0, shared), rel=1e-7)
    assert found.difference == compare_methods(a, b, shared_seeds=shared)


def test_p_is_below_5_percent_exactly_if_the_90_percent_interval_lies_within_the_margin():
    rng = np.random.default_rng(1)
    seen = set()
    for _ in range(50):
        a, b = rng.normal(rng.uniform(-2, 2), rng.uniform(0.2, 3), 6), np.zeros(6)
        found = equivalence(a, b, margin=2.0, shared_seeds=True)
        inside = abs(found.difference.mean) + found.ci90 < 2.0
        assert (found.p < 0.05) is inside
        seen.add(inside)
    assert seen == {True, False}


def test_no_difference_is_not_yet_equality():
    """Two trainings per method, scattered by points: neither a difference nor equality is shown."""
    a, b = np.array([90.0, 84.0]), np.array([85.0, 90.0])
    found = equivalence(a, b, margin=2.0, shared_seeds=True)
    assert found.difference.p > 0.05 and found.p > 0.05
    assert "equal within 2: p = " in str(found)


def test_a_clear_difference_can_be_shown_to_be_small():
    a = np.array([1.0, 1.1, 0.9, 1.05, 0.95])
    found = equivalence(a, np.zeros(5), margin=2.0, shared_seeds=True)
    assert found.difference.p < 1e-4 and found.p < 1e-4


@pytest.mark.parametrize("constant, p", [(0.0, 0.0), (1.9, 0.0), (-2.0, 1.0), (3.0, 1.0)])
def test_trainings_without_scatter(constant, p):
    assert equivalence(np.full(3, constant), np.zeros(3), margin=2.0, shared_seeds=True).p == p


@pytest.mark.parametrize("margin", [0.0, -1.0, math.nan])
def test_a_margin_must_be_above_zero(margin):
    with pytest.raises(ValueError, match="margin: must be"):
        equivalence([1.0, 2.0], [1.0, 2.0], margin=margin, shared_seeds=True)
