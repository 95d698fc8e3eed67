"""The noise has the distribution it is said to have.

Every test states its hypothesis and rejects at ALPHA = 1e-6, two-sided: with correct noise a test fails by chance once
in a million choices of its key. Keys are fixed, so a test that passes keeps passing. There are some 1,200 comparisons
here and in test_noise_devices.py: a correct sampler had a chance of about 1e-3 to fail any of them when the keys were
chosen.
"""

import itertools

import numpy as np
import pytest
from scipy import stats

import nft_ext as nft
from nft_ext import _core

ALPHA = 1e-6
CRITICAL = stats.norm.isf(ALPHA / 2)  # 4.89
SLICE = 255


def normals(n, seed=0, stream=0, draw=0, slice_=SLICE, domain="evaluation"):
    return _core.normals(nft.noise_key(seed, draw, domain=domain)[0].numpy(), stream, slice_, n)


def correlation_score(a, b):
    """sqrt(n) times the correlation of independent standard normals: standard normal itself for large n."""
    return float(np.dot(a, b)) / np.sqrt(len(a))


# ---- a million draws, in every run


def test_a_million_normals():
    """Kolmogorov-Smirnov, mean, variance, skewness, kurtosis."""
    n = 2**20
    z = normals(n).astype(np.float64)
    assert stats.kstest(z, "norm").pvalue > ALPHA
    assert abs(z.mean()) * np.sqrt(n) < CRITICAL
    assert abs((z**2).mean() - 1) * np.sqrt(n / 2) < CRITICAL
    assert abs((z**3).mean()) * np.sqrt(n / 15) < CRITICAL
    assert abs((z**4).mean() - 3) * np.sqrt(n / 96) < CRITICAL


# ---- 1e8 draws


BINS_PER_UNIT, REACH = 128, 7
STREAMS, DRAWS, LENGTH = range(8), range(12), 2**20  # 96 * 2^20 = 1.007e8


@pytest.fixture(scope="module")
def hundred_million():
    """Histogram over [-7, 7), extreme value, and sums of products of neighbours, over 1e8 draws of 96 (stream, draw)
    pairs.
    """
    edges = np.arange(-REACH * BINS_PER_UNIT, REACH * BINS_PER_UNIT + 1) / BINS_PER_UNIT
    counts = np.zeros(len(edges) - 1, np.int64)
    beyond = dict.fromkeys((4, 5, 6), 0)
    lags = dict.fromkeys((1, 2, 3, 4, 8, 256), 0.0)
    squares = dict.fromkeys((1, 2), 0.0)
    between = []
    largest, before = 0.0, None
    for stream, draw in itertools.product(STREAMS, DRAWS):
        z = normals(LENGTH, seed=20260101, stream=stream, draw=draw)
        counts += np.bincount(
            ((z + np.float32(REACH)) * np.float32(BINS_PER_UNIT)).astype(np.int32), minlength=len(counts)
        )
        size = np.abs(z)
        largest = max(largest, float(size.max()))
        for limit in beyond:
            beyond[limit] += int((size > limit).sum())
        z = z.astype(np.float64)
        for lag in lags:
            lags[lag] += float(np.dot(z[:-lag], z[lag:]))
        square = (z * z - 1) / np.sqrt(2)
        squares[1] += float(np.dot(square[0::2], square[1::2]))  # the two normals of one Box-Muller pair
        squares[2] += float(np.dot(square[:-2], square[2:]))
        if before is not None:
            between.append(correlation_score(z, before))
        before = z
    n = LENGTH * len(STREAMS) * len(DRAWS)
    assert counts.sum() == n >= 1e8
    return dict(
        n=n, edges=edges, counts=counts, beyond=beyond, lags=lags, squares=squares, between=between, largest=largest
    )


@pytest.mark.slow
def test_chi_square_over_bins(hundred_million):
    """1792 bins of width 1/128, those that expect fewer than 50 draws merged into the tails."""
    n, counts = hundred_million["n"], hundred_million["counts"]
    below = stats.norm.cdf(hundred_million["edges"])
    below[0], below[-1] = 0, 1
    expected = n * np.diff(below)
    inner = expected >= 50
    observed = np.append(counts[inner], counts[~inner].sum())
    wanted = np.append(expected[inner], expected[~inner].sum())
    assert len(wanted) > 1000
    p = stats.chi2.sf(((observed - wanted) ** 2 / wanted).sum(), len(wanted) - 1)
    assert ALPHA < p < 1 - ALPHA  # too good a fit is as suspicious as a bad one


@pytest.mark.slow
def test_kolmogorov_smirnov_on_the_bins_edges(hundred_million):
    """The largest distance at 1793 points is a lower bound of the statistic, so the rejection rate is below ALPHA."""
    n = hundred_million["n"]
    distance = np.abs(np.cumsum(hundred_million["counts"]) / n - stats.norm.cdf(hundred_million["edges"][1:])).max()
    assert stats.kstwobign.sf(distance * np.sqrt(n)) > ALPHA


@pytest.mark.slow
def test_symmetry(hundred_million):
    """Mirrored bins hold equally many draws, pair by pair and in total."""
    counts = hundred_million["counts"]
    left, right = counts[: len(counts) // 2][::-1], counts[len(counts) // 2 :]
    both = left + right
    used = both >= 50
    statistic = ((left - right)[used] ** 2 / both[used]).sum()
    assert ALPHA < stats.chi2.sf(statistic, used.sum()) < 1 - ALPHA
    assert abs(int(right.sum()) - int(left.sum())) / np.sqrt(hundred_million["n"]) < CRITICAL


@pytest.mark.slow
@pytest.mark.parametrize("limit", [4, 5, 6])
def test_tails(hundred_million, limit):
    """P(|z| > 4) = 6.3e-5 (6,400 draws expected), beyond 5: 5.7e-7 (58), beyond 6: 2e-9 (0.2). Exact binomial test."""
    p = 2 * stats.norm.sf(limit)
    assert stats.binomtest(hundred_million["beyond"][limit], hundred_million["n"], p).pvalue > ALPHA


@pytest.mark.slow
def test_the_reach(hundred_million):
    """|z| <= sqrt(64 ln 2) = 6.66, and 1e8 draws come beyond 5.2 (expected 20 times)."""
    assert 5.2 < hundred_million["largest"] <= 6.661


@pytest.mark.slow
def test_neighbours_are_uncorrelated(hundred_million):
    """Lags within a Box-Muller pair, a Philox block, and to the next chunk; and of squares, where a shared radius would
    show.
    """
    root = np.sqrt(hundred_million["n"])
    for lag, total in hundred_million["lags"].items():
        assert abs(total) / root < CRITICAL, lag
    assert abs(hundred_million["squares"][1]) / (root / np.sqrt(2)) < CRITICAL
    assert abs(hundred_million["squares"][2]) / root < CRITICAL


@pytest.mark.slow
def test_chips_and_layers_are_uncorrelated(hundred_million):
    """The 95 correlations of consecutive (stream, draw) pairs: each small, and together standard normal."""
    between = np.array(hundred_million["between"])
    assert len(between) == 95 and np.abs(between).max() < CRITICAL
    p = stats.chi2.sf((between**2).sum(), len(between))
    assert ALPHA < p < 1 - ALPHA


# ---- numbers whose keys differ in one field


ORIGIN = dict(seed=11, stream=22, draw=33, slice_=3, domain="evaluation")
NEIGHBOURS = {
    "seed": dict(seed=12),
    "seed, high word": dict(seed=11 + 2**32),
    "stream": dict(stream=23),
    "draw": dict(draw=34),
    "draw, high bit": dict(draw=33 + 2**31),
    "slice": dict(slice_=4),
    "idle slice": dict(slice_=35),
    "fast path": dict(slice_=255),
    "training": dict(domain="training"),
    "selection": dict(domain="selection"),
    "stream and draw exchanged": dict(stream=33, draw=22),
}


@pytest.mark.parametrize("name", NEIGHBOURS)
def test_keys_that_differ_in_one_field_give_independent_numbers(name):
    """No equal values, no correlation of values or squares, also one element shifted, over 2^18 draws."""
    a = normals(2**18, **ORIGIN).astype(np.float64)
    b = normals(2**18, **ORIGIN | NEIGHBOURS[name]).astype(np.float64)
    assert (a == b).mean() < 1e-5
    for x, y in ((a, b), (a[1:], b[:-1]), (a[:-1], b[1:]), ((a**2 - 1) / np.sqrt(2), (b**2 - 1) / np.sqrt(2))):
        assert abs(correlation_score(x, y)) < CRITICAL


def test_one_element_over_many_chips_is_normal_too():
    """The first weights of one layer over 2^16 draws: Kolmogorov-Smirnov for each, and no correlation from chip to
    chip.
    """
    weight = np.ones(8, np.float32)
    table = np.array([0, 0, 1, 1], np.float32)  # one-bit weights: mean 0, std 1
    keys = nft.noise_key(5, range(2**16)).numpy()
    z = _core.program(weight, 1.0, table, keys, 9, 1, 1, 1)
    assert z.shape == (2**16, 8)
    for element in z.T.astype(np.float64):
        assert stats.kstest(element, "norm").pvalue > ALPHA
        assert abs(correlation_score(element[1:], element[:-1])) < CRITICAL
