"""The 95 % interval of a mean over chips: skewed chips, shares near 0 and 1, chips that hardly differ, the stop."""

import math

import numpy as np
import pytest

from nft_ext.montecarlo import RunStatistic
from nft_ext.montecarlo.statistics.precision import Precision, precision_of, runs_for
from nft_ext.montecarlo.statistics.slice_estimate import credible_estimate, estimate
from nft_ext.montecarlo.statistics.stopping import ALIKE_RUNS, Goal, until

Z = 1.959964


def of_share(right, images, count=1):
    right = np.asarray(right, dtype=float)
    found = credible_estimate(right, np.full(len(right), float(images)), count, share=True)
    return precision_of(found, share=True), found


# ---- arms


def test_symmetric_chips_have_student_s_interval():
    values = np.tile([0.4, 0.6], 32)
    precision = RunStatistic(values, 0.5, higher_is_better=True).precision
    expected = 1.998341 * values.std(ddof=1) / 8  # t(0.975, 63)
    assert (precision.below, precision.above) == pytest.approx((expected, expected), rel=1e-5)
    assert precision.df == 63 and not precision.rough


@pytest.mark.parametrize("bad", [1, 2, 5, 20])
def test_rare_bad_chips_have_the_score_interval_of_their_number(bad):
    """K of R chips fail: the lower end is that of a Poisson number, K + z^2/2 + z sqrt(K + z^2/4)."""
    runs = 20_000
    values = np.where(np.arange(runs) < bad, 0.0, 0.9)
    precision, found = of_share(1000 * values, 1000)
    low, high = float(found.mean) - precision.below, float(found.mean) + precision.above
    most = bad + Z**2 / 2 + Z * math.sqrt(bad + Z**2 / 4)
    assert 0.9 * (1 - most / runs) == pytest.approx(low, abs=0.9 * 0.01 / runs)
    # The upper end is not drawn in by the skew.
    assert high - values.mean() == pytest.approx(Z * values.std(ddof=1) / math.sqrt(runs), rel=1e-3)


def test_the_interval_turns_around_with_the_metric():
    values = np.random.default_rng(0).exponential(size=100)
    one, other = (RunStatistic(v, v.mean(), higher_is_better=True) for v in (values, -values))
    assert one.interval == pytest.approx((-other.interval[1], -other.interval[0]), rel=1e-12)
    assert one.precision.above > one.precision.below > 0
    assert one.ci95 == one.precision.above


@pytest.mark.parametrize("right, end", [(10, 0), (0, 1)])
def test_images_without_an_error_bound_the_rate_of_errors_by_at_least_three_in_n(right, end):
    precision, _ = of_share([right] * 64, 10)
    mean = right / 10
    ends = mean - precision.below, mean + precision.above
    assert ends[1 - end] == mean and abs(ends[end] - mean) == pytest.approx(Z**2 / 640, rel=1e-6)
    assert precision.half_width >= 3 / 640 and precision.rough


@pytest.mark.parametrize("images", [1, 2, 10])
@pytest.mark.parametrize("runs", [2, 3, 64])
def test_no_interval_of_a_share_has_zero_width_or_leaves_0_to_1(runs, images):
    for right in range(images + 1):
        for last in range(images + 1):
            precision, found = of_share([right] * (runs - 1) + [last], images)
            low, high = float(found.mean) - precision.below, float(found.mean) + precision.above
            assert -1e-15 <= low <= found.mean <= high <= 1 + 1e-15
            assert precision.half_width >= min(0.5, 2.99 / (runs * images))


def test_a_metric_that_is_no_share_has_no_floor_of_images():
    alike = np.full(64, 0.3)
    assert RunStatistic(alike, 0.3, higher_is_better=False).ci95 == 0
    assert RunStatistic(alike, 0.3, higher_is_better=False).precision.rough


# ---- degrees of freedom


def test_few_chips_and_few_chips_that_differ_are_rough():
    random = np.random.default_rng(1)
    assert RunStatistic(random.normal(size=20), 0.0, higher_is_better=True).precision.rough
    assert not RunStatistic(random.normal(size=64), 0.0, higher_is_better=True).precision.rough
    for different in (3, 9):
        precision, _ = of_share([9] * different + [10] * (400 - different), 10)
        assert precision.rough and precision.df == pytest.approx(2 * different, rel=0.1)
    assert not of_share([9] * 11 + [10] * 389, 10)[0].rough


def test_an_unknown_interval_is_not_called_rough():
    assert not Precision(math.nan, math.nan, math.nan, 0.0).rough


def test_bad_chips_outside_the_pairs_enter_the_variance():
    """164 chips, 100 slices: 64 pairs. Four bad chips are in none, so the pairs alone would give a tenth."""
    random = np.random.default_rng(2)
    right = random.binomial(50, 0.97, 164).astype(float)
    right[66:70] = 5
    sizes = np.full(164, 50.0)
    pairs_alone, used = estimate(right, sizes, 100), credible_estimate(right, sizes, 100, share=True)
    assert not pairs_alone.conservative and used.conservative
    assert used.per_chip > 10 * pairs_alone.per_chip
    assert used.variance == pytest.approx(np.var(right / 50, ddof=1) / 164)


def test_regular_chips_keep_the_exact_variance():
    random = np.random.default_rng(3)
    right, sizes = random.binomial(50, 0.8, 200).astype(float), np.full(200, 50.0)
    used, exact = credible_estimate(right, sizes, 20, share=True), estimate(right, sizes, 20)
    assert used.variance == exact.variance and not used.conservative


def test_equal_chips_get_the_upper_bound_of_a_pair_that_differs_by_one_image():
    """Two tilings of ten slices; slices differ, chips do not."""
    right = np.tile([8.0, 9, 7, 9, 10, 8, 9, 7, 9, 8], 2)
    sizes = np.full(20, 10.0)
    found = credible_estimate(right, sizes, 10, share=True)
    assert found.per_chip == pytest.approx(Z**2 / 10 * 0.1**2 / 2, rel=1e-6)
    assert precision_of(found, share=True).rough
    # For another metric one image has no size, so the plain variance decides.
    assert credible_estimate(right, sizes, 10, share=False).conservative


# ---- stop


def collector(right, images, count=1, share=True):
    seen = [0]

    def more(first, last):
        assert first == seen[0] < last
        seen[0] = last

    sizes = np.full(len(right), float(images))
    return seen, more, lambda: credible_estimate(right[: seen[0]], sizes[: seen[0]], count, share)


@pytest.mark.parametrize("count", [1, 100])
@pytest.mark.parametrize("target", [0.001, 0.0002])
def test_without_an_error_the_stop_waits_for_the_images_that_the_target_needs(target, count):
    seen, more, found = collector(np.full(20_000, 10.0), 10, count)
    precision = until(Goal(target, 64, 20_000), count, more, found)
    assert precision.reached and 0 < precision.half_width <= target
    assert 10 * seen[0] >= 3 / target


def test_a_pilot_of_chips_that_hardly_differ_grows_before_it_decides():
    right = np.full(5000, 9.0)
    for share in (True, False):
        seen, more, found = collector(right, 10, share=share)
        until(Goal(0.05, 64, 5000), 1, more, found, share=share)
        assert seen[0] == ALIKE_RUNS, "less than 1 % of chips may be unlike 299"
    right[100::20] = 1  # one chip of twenty fails, but none of the first 100
    seen, more, found = collector(right, 10)
    precision = until(Goal(0.02, 64, 5000), 1, more, found)
    assert seen[0] >= ALIKE_RUNS and precision.reached
    assert abs(right[: seen[0]].mean() / 10 - 0.86) <= precision.half_width


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("rate", [0.99, 0.9, 0.01])
def test_the_number_of_chips_is_the_smallest_whose_interval_is_within_the_target(rate, share):
    right = np.random.default_rng(4).binomial(10, rate, 100).astype(float)
    found = credible_estimate(right, np.full(100, 10.0), 1, share)
    target = 0.7 * precision_of(found, share).half_width
    runs = runs_for(target, found, 2, 10**6, 1, share)
    longest = []
    for number in (runs - 1, runs):
        scaled = found.__class__(
            **{
                **vars(found),
                "runs": number,
                "inferences": found.inferences * number / 100,
                "variance": found.per_chip / number,
            }
        )
        below, above = precision_of(scaled, share).below, precision_of(scaled, share).above
        longest.append(max(below, above))
    assert longest[1] <= target * (1 + 1e-12) and runs > 100
    assert longest[0] > target


def test_the_99_935_percent_network_is_never_reported_without_an_error_bound():
    """It used to end as 100.00 +- 0.00 after 64 chips in two of three evaluations: their slices held no error."""
    held = []
    for seed in range(40):
        right = 10.0 - np.random.default_rng(seed).binomial(10, 1 - 0.99935, 20_000)
        seen, more, found = collector(right, 10, 1000)
        precision = until(Goal(0.001, 64, 20_000), 1000, more, found)
        mean = right[: seen[0]].mean() / 10
        assert precision.reached and seen[0] >= 300
        assert f"{100 * precision.half_width:.2f}" != "0.00"
        held.append(mean - precision.below <= 0.99935 <= mean + precision.above)
    assert np.mean(held) >= 0.85  # a right interval fails with probability 0.002
