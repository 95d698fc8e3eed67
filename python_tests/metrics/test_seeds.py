"""Intervals over training seeds and over chips, claims about methods, and the share of trainings that converge."""

import math

import numpy as np
import pytest
import torch

from nft_ext.metrics import clopper_pearson, compare_methods, convergence, fisher_exact, over_seeds, paired

stats = pytest.importorskip("scipy.stats", reason="the expected values are SciPy's (extra: test)")


# ---- over_seeds ---------------------------------------------------------------------------------------------------


def test_the_two_intervals_have_seeds_and_chips_as_replicates():
    y = np.random.default_rng(0).normal(0.8, 0.1, (5, 40))
    found = over_seeds(y)
    assert found.mean == pytest.approx(y.mean(), rel=1e-12) and (found.seeds, found.runs) == (5, 40)
    for half, means in ((found.seed_ci95, y.mean(axis=1)), (found.noise_ci95, y.mean(axis=0))):
        assert half == pytest.approx(stats.t.ppf(0.975, len(means) - 1) * stats.sem(means), rel=1e-9)
    assert found.seed_means == pytest.approx(tuple(y.mean(axis=1)))
    assert "5 training seeds" in str(found) and "40 chips" in str(found)


def tables(count, seed_sd, chip_sd, rest_sd, shape, rng):
    seeds, runs = shape
    for _ in range(count):
        yield (rng.normal(0, seed_sd, (seeds, 1)) + rng.normal(0, chip_sd, (1, runs)) + rng.normal(0, rest_sd, shape))


@pytest.mark.parametrize("chip_sd, rest_sd", [(0.5, 1.0), (0.0, 1.0)], ids=["common chips", "own chips"])
def test_the_variance_split_is_unbiased_and_each_interval_covers_its_own_population(chip_sd, rest_sd):
    seed_sd, shape, count = 2.0, (6, 20), 800
    found = [over_seeds(t) for t in tables(count, seed_sd, chip_sd, rest_sd, shape, np.random.default_rng(1))]
    # Cutting at zero biases a component that is zero upwards, by at most a standard error of it.
    for name, truth, slack in (
        ("var_seed", seed_sd**2, 0.35),
        ("var_chip", chip_sd**2, 0.04),
        ("var_rest", rest_sd**2, 0.03),
    ):
        assert np.mean([getattr(f, name) for f in found]) == pytest.approx(truth, abs=slack)
    covered = np.mean([abs(f.mean) <= f.seed_ci95 for f in found])  # the population mean is 0
    assert covered == pytest.approx(0.95, abs=0.03)
    assert np.mean([abs(f.mean) <= f.noise_ci95 for f in found]) < 0.5  # chips alone say little about trainings


def test_one_seed_or_one_run_leaves_the_other_interval_undefined():
    one_seed = over_seeds([[0.1, 0.2, 0.3]])
    assert math.isnan(one_seed.seed_ci95) and one_seed.noise_ci95 > 0 and math.isnan(one_seed.var_seed)
    one_run = over_seeds([0.1, 0.2, 0.3])
    assert one_run.seed_ci95 == pytest.approx(one_seed.noise_ci95) and math.isnan(one_run.noise_ci95)
    equal = over_seeds(np.full((3, 4), 0.1))
    assert (equal.mean, equal.seed_ci95, equal.noise_ci95, equal.var_rest) == (0.1, 0, 0, 0)


# ---- methods ------------------------------------------------------------------------------------------------------


def test_methods_with_shared_seeds_are_compared_seed_by_seed():
    rng = np.random.default_rng(3)
    a, b = rng.normal(0.9, 0.02, (8, 50)), rng.normal(0.85, 0.02, (8, 50))
    found, pairs = compare_methods(a, b, shared_seeds=True), paired(a.mean(axis=1), b.mean(axis=1))
    assert (found.mean, found.ci95, found.t, found.p, found.df) == (pairs.mean, pairs.ci95, pairs.t, pairs.p_t, 7)
    assert found.test == "paired t" and found.seeds == (8, 8)


def test_methods_with_their_own_seeds_are_compared_by_welchs_test():
    rng = np.random.default_rng(4)
    a, b = rng.normal(0.9, 0.02, 5), rng.normal(0.85, 0.1, 9)
    found = compare_methods(a, torch.from_numpy(b), shared_seeds=False)
    expected = stats.ttest_ind(a, b, equal_var=False)
    assert (found.t, found.p, found.df) == pytest.approx((expected.statistic, expected.pvalue, expected.df), rel=1e-9)
    low, high = expected.confidence_interval(0.95)
    assert (found.mean - found.ci95, found.mean + found.ci95) == pytest.approx((low, high), rel=1e-9)
    assert found.test == "Welch" and "5 and 9 training seeds" in str(found)


def test_chips_do_not_count_as_replicates_of_a_method():
    """Ten times the chips of the same networks: the same p-value."""
    rng = np.random.default_rng(5)
    a, b = rng.normal(0.9, 0.02, (4, 1)), rng.normal(0.88, 0.02, (4, 1))
    few, many = (compare_methods(a.repeat(n, 1), b.repeat(n, 1), shared_seeds=False).p for n in (1, 10))
    assert few == pytest.approx(many, rel=1e-9)


# ---- proportions --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count, trials", [(0, 10), (2, 10), (6, 10), (10, 10), (1, 1), (37, 1000)])
def test_clopper_pearson(count, trials):
    expected = stats.binomtest(count, trials).proportion_ci(0.95, "exact")
    assert clopper_pearson(count, trials) == pytest.approx((expected.low, expected.high), rel=1e-9)


@pytest.mark.parametrize(
    "a, m, b, n", [(6, 10, 0, 10), (6, 10, 2, 10), (2, 10, 0, 10), (3, 7, 11, 20), (0, 5, 0, 9), (5, 5, 9, 9)]
)
def test_fishers_exact_test(a, m, b, n):
    assert fisher_exact(a, m, b, n) == pytest.approx(stats.fisher_exact([[a, m - a], [b, n - b]]).pvalue, rel=1e-9)
    assert fisher_exact(b, n, a, m) == fisher_exact(a, m, b, n)


# ---- convergence --------------------------------------------------------------------------------------------------


def test_the_papers_counts():
    """VGG-8 on MNIST at sigma 0.35: 6 of 10 trainings by noise injection do not converge, none by OVF, 2 by IRS."""
    noise = convergence([0.99] * 4 + [0.2] * 6)
    ovf = convergence([0.99, 0.985] * 5)
    irs = convergence([0.99] * 8 + [0.2] * 2)
    assert (noise.non_converging, ovf.non_converging, irs.non_converging) == (6, 0, 2)
    assert (noise.low, noise.high) == pytest.approx((0.121552, 0.737622), abs=1e-6)
    assert (ovf.low, ovf.high) == pytest.approx((0.691503, 1.0), abs=1e-6)
    assert noise.differs_from(ovf) == pytest.approx(0.0108359, abs=1e-7)
    assert noise.differs_from(irs) == pytest.approx(0.1698023, abs=1e-7)  # 6 of 10 against 2 of 10 shows nothing yet
    assert irs.differs_from(ovf) == pytest.approx(0.4736842, abs=1e-7)
    assert "6 of 10 trainings do not converge" in str(noise)


def test_the_papers_criterion_looks_at_the_methods_own_mean():
    assert convergence([0.1, 0.1, 0.1]).non_converging == 0  # never converging passes it, and the docs say so
    assert convergence([0.75, 0.5, 1.0], margin=0.25).converged == (True, True, True)  # exactly the margin is not more
    assert convergence([[0.9, 0.7], [0.2, 0.4]]).thresholds == pytest.approx((0.5, 0.5))  # 0.55 - 0.05


def test_the_absolute_criterion_looks_at_the_clean_accuracy():
    found = convergence([0.5, 0.9, 0.89], clean=1.0)
    assert found.converged == (False, True, False) and "90 % of the clean accuracy" in found.criterion
    assert convergence([0.5, 0.9], clean=[0.5, 1.0], share=0.95).converged == (True, False)
    with pytest.raises(ValueError, match="other: must be judged by the same criterion"):
        found.differs_from(convergence([0.5, 0.9]))


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: convergence([97.0, 98.0]), "accuracy: must hold accuracies as fractions in 0..1; got 97"),
        (lambda: convergence([]), "accuracy: must have shape"),
        (lambda: convergence([0.5], margin=-1), "margin: must be a finite number >= 0"),
        (
            lambda: convergence([0.5, 0.6], clean=[0.9]),
            "clean: must be one number, or one per training, here 2; got 1",
        ),
        (lambda: over_seeds([[0.5, math.nan]]), r"values: must be finite; got nan at \[0, 1\]"),
        (lambda: over_seeds([[0.5], [0.1, 0.2]]), "values: must be numbers"),
        (lambda: compare_methods([0.5], [0.5, 0.6], shared_seeds=False), "a: must have shape .* at least 2"),
        (
            lambda: compare_methods([0.5, 0.6, 0.7], [0.5, 0.6], shared_seeds=True),
            "b: must have as many values as a, 3",
        ),
        (lambda: clopper_pearson(3, 2), r"count: must be an integer in 0..2; got 3"),
        (lambda: clopper_pearson(1, 2, 1.0), "confidence: must be > 0 and < 1"),
        (lambda: fisher_exact(1, 0, 1, 2), "trials_a: must be an integer >= 1"),
    ],
)
def test_bad_input_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()
