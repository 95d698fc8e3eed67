"""bench.studies.coverage in small: the intervals hold the truth as often as they claim.

Each check allows 5 standard errors of its own simulation beside the band: a right interval fails it with probability
below 1e-6.
"""

import math

import numpy as np
import pytest

from bench.studies.coverage import BAND, Setting, evaluate, study
from bench.studies.populations import Recorded, Synthetic

STRONG = Synthetic(200, 0.8, 0.3)


@pytest.mark.parametrize(
    "setting",
    [
        Setting("tilings", STRONG, 20, runs=100),
        Setting("98 %", Synthetic(200, 0.98, 0.3), 20, runs=100),
        Setting("one tiling and 64 chips", Synthetic(400, 0.8, 0.3), 5, runs=144),
        Setting("whole sets", STRONG, 200, runs=64),
        Setting("target", STRONG, 20, target=0.014),
    ],
    ids=lambda setting: setting.name,
)
def test_coverage(setting):
    evaluations = 400
    result = study(setting, evaluations)
    slack = 5 * math.sqrt(0.05 * 0.95 / evaluations)
    assert BAND[0] - slack <= result["coverage"] <= 1
    # Not by being wide: the interval is about 1.96 standard deviations of what it is about.
    assert result["half_width_mean"] < 2.4 * result["std_of_means"]
    assert abs(result["mean_error"]) < 5 * result["std_of_means"] / math.sqrt(evaluations)
    assert result["std_estimate"] == pytest.approx(result["chip_std"], rel=0.15)


def test_below_one_tiling_the_interval_is_wider_than_it_need_be():
    result = study(Setting("few", STRONG, 5, runs=30), 400)
    assert result["conservative_share"] == 1 and result["coverage"] > 0.95


def test_a_naive_interval_would_be_found_out():
    """The check can fail: with the half-width of a fifth of the variance, coverage is far below the band."""
    outcomes = [evaluate(Setting("tilings", STRONG, 20, runs=100), number) for number in range(200)]
    held = np.mean([abs(o.mean - STRONG.truth["accuracy"]) <= o.half_width / math.sqrt(5) for o in outcomes])
    assert held < 0.75


def test_the_synthetic_truth_is_that_of_its_draws():
    random = np.random.default_rng(0)
    population = Synthetic(50, 0.85, 0.4, skewed=True)
    images = np.broadcast_to(np.arange(50), (20_000, 50))
    right, loss = population.sums(random, images, np.ones_like(images, dtype=bool))
    error = (right / 50).std() / math.sqrt(20_000)
    assert abs(right.mean() / 50 - population.truth["accuracy"]) < 5 * error
    assert (right / 50).std() == pytest.approx(population.truth["std"], rel=0.05)
    assert loss.sum() / right.sum() == pytest.approx(population.truth["ekl"], rel=0.02)


def test_a_recorded_matrix_is_its_own_truth():
    correct = np.random.default_rng(1).random((300, 40)) < 0.7
    population = Recorded(correct)
    images = np.broadcast_to(np.arange(40), (3000, 40))
    right, _ = population.sums(np.random.default_rng(2), images, np.ones_like(images, dtype=bool))
    assert right.mean() / 40 == pytest.approx(population.truth["accuracy"], abs=0.01)
