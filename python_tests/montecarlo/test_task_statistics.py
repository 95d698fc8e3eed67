"""Figures of sums over slices against a known population: mean without bias, intervals with their coverage, spread."""

import numpy as np
import pytest
import torch

from nft_ext.montecarlo.statistics.estimates import run_statistics, slice_statistics
from nft_ext.montecarlo.statistics.slices import Slices
from nft_ext.montecarlo.statistics.tallies import Tallies
from nft_ext.montecarlo.tasks.metric import built_in_figure, field, ratio_of

CHIPS, EXAMPLES, RUNS, MOST = 400, 60, 120, 10
EVALUATIONS = 1000
# Three standard errors of a share of 95 % among EVALUATIONS: a right interval fails once in 400 seeds.
BAND = 3 * (0.95 * 0.05 / EVALUATIONS) ** 0.5


def population(kind):
    """Parts [CHIPS, EXAMPLES, K] of every example on every chip."""
    draw = np.random.default_rng(7)
    chip, example = draw.normal(0, 0.3, (CHIPS, 1)), draw.normal(0, 0.5, (1, EXAMPLES))
    level = 1 + chip + example + draw.normal(0, 0.4, (CHIPS, EXAMPLES))
    if kind == "miou":
        both = np.clip(np.rint(6 * np.stack([level, 1.5 - level], -1)), 0, 12)
        return np.concatenate([both, both + draw.integers(1, 9, both.shape)], axis=-1)
    tokens = np.broadcast_to(draw.integers(2, 30, (1, EXAMPLES)), level.shape)  # the denominators differ
    return np.stack([level * tokens, tokens], axis=-1).astype(float)


def tallies(parts):
    """[R, n, K] -> the sums of R chips."""
    parts = torch.from_numpy(np.ascontiguousarray(parts))
    products = torch.stack([parts[..., 0] ** 2, parts[..., 0] * parts[..., 1], parts[..., 1] ** 2], dim=-1)
    return Tallies({field("m"): parts.sum(1), field("m", "products"): products.sum(1)})


def figure_of(kind):
    return ratio_of("m", None) if kind == "ratio" else built_in_figure("m", kind)


@pytest.fixture(scope="module", params=["ratio", "perplexity", "miou"])
def evaluated(request):
    """The figure, its true value and chip-to-chip variance, and the statistics of many evaluations by slices."""
    parts, figure = population(request.param), figure_of(request.param)
    total = parts.sum(axis=1)
    truth = float(figure.value(total.sum(axis=0)))
    between = float((total @ figure.gradient(total.mean(axis=0))).var())
    draw, found = np.random.default_rng(11), []
    for seed in range(EVALUATIONS):
        slices = Slices(seed, EXAMPLES, MOST)
        numbers, _ = slices.of(list(range(RUNS)))
        chips = draw.integers(CHIPS, size=(RUNS, 1))
        found.append(slice_statistics([figure], tallies(parts[chips, numbers.numpy()]), slices)["m"])
    return request.param, truth, between, found


def test_the_interval_covers_the_true_value(evaluated):
    _, truth, _, found = evaluated
    covered = np.mean([s.interval[0] <= truth <= s.interval[1] for s in found])
    assert abs(covered - 0.95) <= BAND + 0.005  # Student's t of a ratio is exact to first order only


def test_the_mean_has_no_bias_beyond_its_order(evaluated):
    _, truth, _, found = evaluated
    means = np.array([s.mean for s in found])
    standard_error = means.std() / EVALUATIONS**0.5
    assert abs(means.mean() - truth) <= 3 * standard_error + means.var() / abs(truth)


def test_the_standard_error_is_that_of_the_mean(evaluated):
    _, _, _, found = evaluated
    assert np.mean([s.standard_error**2 for s in found]) == pytest.approx(np.var([s.mean for s in found]), rel=0.15)


def test_the_spread_over_chips_is_that_of_whole_sets(evaluated):
    kind, _, between, found = evaluated
    if kind == "miou":  # sums per class hold no products of an example
        assert all(np.isnan(s.std) for s in found)
    else:
        assert np.mean([s.std**2 for s in found]) == pytest.approx(between, rel=0.05)


@pytest.mark.parametrize("kind", ["ratio", "perplexity", "miou"])
def test_whole_sets_give_the_plain_statistics_of_the_chips(kind):
    parts, figure = population(kind)[:50], figure_of(kind)
    values = figure.value(parts.sum(axis=1))
    found = run_statistics([figure], tallies(parts))["m"]
    assert found.per_run == pytest.approx(values) and found.mean == pytest.approx(values.mean())
    of = figure.estimate(tallies(parts), count=1, whole=True)
    assert float(of.mean) == pytest.approx(values.mean(), rel=1e-12)
    assert float(of.variance) == pytest.approx(values.var(ddof=1) / 50, rel=1e-9)


@pytest.mark.parametrize("kind", ["ratio", "perplexity", "miou"])
def test_the_gradient_is_that_of_the_figure(kind):
    figure, at = figure_of(kind), population(kind).sum(axis=(0, 1)) / 1e3
    for k in range(len(at)):
        step = np.zeros(len(at))
        step[k] = 1e-6 * at[k]
        slope = (figure.value(at + step) - figure.value(at - step)) / (2 * step[k])
        assert figure.gradient(at)[k] == pytest.approx(float(slope), rel=1e-6, abs=1e-12)
    assert figure.gradient(at) @ at == pytest.approx(0.0, abs=1e-12), "a factor of all sums changes nothing"


@pytest.mark.parametrize("kind, items", [("token_accuracy", 20), ("top3", 1)])
def test_a_share_without_an_error_has_the_rule_of_three_by_its_items(kind, items):
    """R chips with n examples of `items` right items each: 1 - 3.84 / (R n items) to 1, the score interval."""
    runs, examples = 40, 5
    figure = built_in_figure(kind, kind)
    every = runs * examples * items
    sums = torch.full((runs, 2), float(examples * items), dtype=torch.float64)
    tallies = Tallies({field(kind): sums, field(kind, "products"): torch.zeros(runs, 3, dtype=torch.float64)})
    found = run_statistics([figure], tallies)[kind]
    assert figure.share and found.share and found.interval[1] == 1.0
    assert found.interval[0] == pytest.approx(1 - 1.959964**2 / every, rel=1e-12)
    other = run_statistics([ratio_of(kind, True)], tallies)[kind]
    assert other.ci95 == 0.0 and other.precision.rough, "a ratio that nobody knows to be a share has no such rule"
