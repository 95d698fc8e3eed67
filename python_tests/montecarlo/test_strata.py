"""The stratified estimators against exact expectations over small populations; pilots against what they estimate."""

import itertools
import math

import numpy as np
import pytest

from nft_ext.metrics.distributions import student_t_quantile
from nft_ext.montecarlo.execution import pilot
from nft_ext.montecarlo.statistics import slice_estimate
from nft_ext.montecarlo.statistics.precision import precision_of
from nft_ext.montecarlo.statistics.slice_estimate import between_chips, estimate
from nft_ext.montecarlo.statistics.stopping import Goal, until


class Population:
    """A few chips (drawn with replacement) and images, so that every variance is a finite sum."""

    def __init__(self, correct):
        self.correct = np.array(correct, dtype=float)
        p = self.correct.mean(axis=0)
        self.images = len(p)
        self.th, self.v = p.mean(), np.mean(p * (1 - p))
        ratio = self.images / (self.images - 1)
        self.b2 = self.correct.mean(axis=1).var()
        self.p2 = ratio * (self.th * (1 - self.th) - self.v)
        self.x2 = ratio * (self.v - self.b2)


POPULATION = Population([[1, 1, 1, 0], [1, 0, 1, 0], [1, 1, 0, 0]])


def evaluations(population, count, runs):
    """Every evaluation of `runs` <= 2 * count chips, equally likely: all permutations (shared by two tilings) x all
    chips.

    [E, R] right images; the slices have images / count images.
    """
    size = population.images // count
    rows = []
    for order in itertools.permutations(range(population.images)):
        by_slice = [
            population.correct[:, list(order[(r % count) * size : (r % count + 1) * size])].sum(axis=1)
            for r in range(runs)
        ]
        rows += [
            [by_slice[r][c] for r, c in enumerate(chips)]
            for chips in itertools.product(range(len(population.correct)), repeat=runs)
        ]
    return np.array(rows), np.full(runs, float(size))


def test_two_tilings_have_the_variance_of_the_design_and_its_estimate_is_unbiased():
    right, sizes = evaluations(POPULATION, count=2, runs=4)
    found = estimate(right, np.broadcast_to(sizes, right.shape), count=2)
    k = 1 / 2 - 1 / 4
    assert found.mean.mean() == pytest.approx(POPULATION.th, rel=1e-12)
    assert found.mean.var() == pytest.approx((POPULATION.b2 + k * POPULATION.x2) / 4, rel=1e-12)
    assert found.variance.mean() == pytest.approx(found.mean.var(), rel=1e-12)
    assert found.within.mean() == pytest.approx(POPULATION.b2 + k * POPULATION.x2 + POPULATION.p2 / 2, rel=1e-12)
    assert (found.df, found.conservative) == (2, False)


def test_the_chips_variance_is_estimated_without_bias():
    right, sizes = evaluations(POPULATION, count=2, runs=4)
    found = estimate(right, np.broadcast_to(sizes, right.shape), count=2)
    assert between_chips(found, right, sizes, 2, 4).mean() == pytest.approx(POPULATION.b2, rel=1e-12)


def test_an_incomplete_tiling_adds_what_the_design_says():
    right, sizes = evaluations(POPULATION, count=2, runs=3)  # one tiling and half of the next
    found = estimate(right, np.broadcast_to(sizes, right.shape), count=2)
    k = 1 / 2 - 1 / 4
    expected = (POPULATION.b2 + k * POPULATION.x2) / 3 + POPULATION.p2 * (1 / 3) ** 2 * (1 / 2 - 1 / 4)
    assert found.mean.var() == pytest.approx(expected, rel=1e-12)
    assert found.conservative and found.variance.mean() > expected


def test_slices_shown_twice_are_enough_for_the_variance_of_a_chip_and_that_of_images(monkeypatch):
    monkeypatch.setattr(slice_estimate, "LEAST_PAIRS", 1)
    right, sizes = evaluations(POPULATION, count=2, runs=3)
    found = estimate(right, np.broadcast_to(sizes, right.shape), count=2)
    k = 1 / 2 - 1 / 4
    assert (found.df, found.conservative) == (1, False)
    assert found.per_chip.mean() == pytest.approx(POPULATION.b2 + k * POPULATION.x2, rel=1e-12)
    assert found.within.mean() - found.per_chip.mean() == pytest.approx(POPULATION.p2 / 2, rel=1e-12)
    # Hence the variance of the mean, but for what is cut at zero.
    uncut = found.per_chip / 3 + (found.within - found.per_chip) * (1 / 3) ** 2 * (1 - 1 / 2)
    assert uncut.mean() == pytest.approx(found.mean.var(), rel=1e-12)


def test_every_slice_shown_twice_counts_and_no_other():
    assert slice_estimate.pairs(runs=9, count=10).tolist() == []
    assert slice_estimate.pairs(runs=13, count=10).tolist() == [0, 1, 2]
    assert slice_estimate.pairs(runs=26, count=10).tolist() == [*range(10)], (
        "the third tiling is of another permutation"
    )
    assert slice_estimate.pairs(runs=36, count=10).tolist() == [*range(10), *range(20, 26)]


@pytest.mark.parametrize("runs", [2, 3, 63, 64, 127, 128, 129, 200, 1000])
def test_the_most_slices_are_those_that_leave_the_exact_variance(runs):
    most = slice_estimate.most_slices(runs)
    assert slice_estimate.least_exact(most) <= runs < slice_estimate.least_exact(most + 1)


def test_the_added_term_is_the_design_s_with_more_tilings():
    random = np.random.default_rng(0)
    numerator = random.binomial(10, 0.7, size=26).astype(float)  # m = 10: two tilings and 6 slices
    found = estimate(numerator, np.full(26, 10.0), count=10)
    extra = max(0.0, float(found.within - found.per_chip)) * (6 / 26) ** 2 * (1 / 6 - 1 / 10)
    assert found.variance == pytest.approx(found.per_chip / 26 + extra, rel=1e-12) and found.df == 10


def test_unequal_slices_weigh_by_their_images():
    # Tilings of 2 + 3 images: the mean is that of images, and chips that all agree leave no variance.
    right, sizes = np.array([2.0, 1.0, 2.0, 1.0]), np.array([2.0, 3.0, 2.0, 3.0])
    found = estimate(right, sizes, count=2)
    assert found.mean == 0.6 and found.variance == 0


def test_whole_sets_give_the_plain_mean_and_variance():
    share = np.random.default_rng(1).random(30)
    found = estimate(10 * share, np.full(30, 10.0), count=1)
    assert found.mean == pytest.approx(share.mean()) and found.df == 29 and not found.conservative
    assert found.variance == pytest.approx(share.var(ddof=1) / 30)


# ---- pilot


def test_components_of_a_crossed_sample_are_unbiased():
    full = Population(np.random.default_rng(3).random((5, 6)) < np.linspace(0.2, 0.95, 6))
    found = []
    for images in itertools.combinations(range(6), 3):  # all choices of 3 images x all of 3 chips with replacement
        for chips in itertools.product(range(5), repeat=3):
            correct = full.correct[np.ix_(chips, images)]
            share = correct.mean(axis=0)
            by_image, by_chip = 1.5 * np.mean(share * (1 - share)), correct.mean(axis=1).var(ddof=1)
            x2 = 1.5 * (by_image - by_chip)
            found.append(
                [x2, by_chip - (1 / 3 - 1 / 6) * x2, 1.5 * (share.mean() * (1 - share.mean()) + by_chip / 3 - by_image)]
            )
            c = pilot.components(correct.astype(bool), 6)
            assert (c.interaction, c.images) == pytest.approx([max(0.0, found[-1][0]), max(0.0, found[-1][2])])
    # What components() computes is unbiased, before the cut at zero.
    assert np.mean(found, axis=0) == pytest.approx([full.x2, full.b2, full.p2], rel=1e-9)


def test_the_best_slice_has_the_least_cost_for_its_variance():
    found, chip = pilot.Components(0.9, 4e-4, 0.06, 0.05), 12.5  # images' time
    cost = [(chip + n) * (found.between + (1 / n - 1 / 10_000) * found.interaction) for n in range(1, 10_001)]
    assert abs(pilot.best_slice(found, chip, 10_000) - (1 + int(np.argmin(cost)))) <= 1
    assert pilot.best_slice(pilot.Components(0.9, 5e-6, 0.06, 0.05), chip, 10_000) == 10_000, "chips alike: whole sets"
    assert pilot.best_slice(found, 0.0, 10_000) == 2


# ---- stopping


def collect(values, count=1):
    """until()'s arguments over chips whose shares of 10 images are `values`."""
    seen = [0]

    def more(first, last):
        assert first == seen[0]
        seen[0] = last

    return seen, more, lambda: estimate(10 * values[: seen[0]], np.full(seen[0], 10.0), count)


@pytest.mark.parametrize("target", [0.05, 0.01, 0.004])
def test_the_interval_at_the_stop_is_within_the_target(target):
    values = np.random.default_rng(4).normal(0.8, 0.05, 20_000)
    seen, more, found = collect(values)
    precision = until(Goal(target, 64, 20_000), 1, more, found)
    assert precision.reached and precision.half_width <= target and precision.pilot_runs == 64
    pilot_alone = math.ceil((student_t_quantile(0.975, 63) * values[:64].std(ddof=1) / target) ** 2)
    assert seen[0] >= max(64, pilot_alone)
    assert precision.half_width >= precision_of(found(), share=True).half_width


def test_a_target_out_of_reach_gives_what_all_runs_give():
    seen, more, found = collect(np.random.default_rng(5).normal(0.8, 0.05, 300))
    precision = until(Goal(1e-4, 64, 300), 1, more, found)
    assert seen[0] == 300 and precision.reached is False
    assert precision.half_width == precision_of(found(), share=True).half_width


def test_many_slices_make_a_tiling_and_64_chips_the_pilot_unless_fewer_chips_do():
    values = np.random.default_rng(6).normal(0.8, 0.05, 5000)
    seen, more, found = collect(values, count=100)
    assert until(Goal(0.005, 64, 5000), 100, more, found).pilot_runs == 164 and seen[0] > 164
    seen, more, found = collect(values, count=100)
    assert until(Goal(0.05, 64, 5000), 100, more, found).pilot_runs == 64 and seen[0] == 64
