"""Programmed weights have the distribution of their device model, and both samplers (one normal per
weight, one normal per device) draw from the same distribution.

As in test_noise_statistics.py: fixed keys, and each comparison rejects correct noise with probability ALPHA = 1e-6.
"""

import math

import numpy as np
import pytest
import torch
from scipy import stats

import nft_ext as nft

ALPHA = 1e-6
CRITICAL = stats.norm.isf(ALPHA / 2)
N = 2**16  # samples a code


def samples(nvm, codes, n=N, draw=0):
    """Programmed weights float64 [len(codes), n] in units of the step: a weight tensor whose step is exactly 1."""
    top = 2**nvm.weight_bits - 1
    weight = torch.tensor([*codes], dtype=torch.float32).repeat_interleave(n)
    weight = torch.cat([weight, torch.tensor([float(top)])])  # max|W| = top, so s = 1 and the code is the weight
    chip = nft.program_weights(weight, nvm, seed=77, stream=88, draws=draw)[0, :-1]
    return chip.reshape(len(codes), n).double().numpy()


def expect_mean(values, mean, variance):
    assert abs(values.mean() - mean) <= CRITICAL * math.sqrt(variance / len(values)) + 1e-6 * abs(mean)


def expect_variance(values, mean, variance):
    """Of any distribution: the fourth moment, estimated, gives the spread of the second."""
    squares = (values - mean) ** 2
    assert abs(squares.mean() - variance) <= CRITICAL * squares.std() / math.sqrt(len(values)) + 1e-6 * variance


def expect_rate(hits, probability):
    if probability in (0, 1):
        assert hits.mean() == probability
    else:
        assert stats.binomtest(int(hits.sum()), hits.size, probability).pvalue > ALPHA


# ---- one normal per weight against one normal per device

MEASURED = dict(level_mean=(-0.2, 1.3, 1.9, 3.4), level_std=(0.1, 0.3, 0.25, 0.0))
GAUSSIAN = {
    "max": nft.NVMDevice(sigma=0.1),
    "spacing": nft.NVMDevice(sigma=0.2, relative_to="spacing"),
    "own": nft.NVMDevice(sigma=0.1, relative_to="own"),
    "one bit": nft.NVMDevice(4, 1, sigma=0.1),
    "one device": nft.NVMDevice(4, 4, sigma=0.1, relative_to="own"),
    "rram1": nft.NVMDevice.preset("rram1", sigma=0.1),
    "fefet2": nft.NVMDevice.preset("fefet2", sigma=0.2),
    "rram4": nft.NVMDevice.preset("rram4", sigma=0.1),
    "fefet6": nft.NVMDevice.preset("fefet6", sigma=0.3),
    "shifted": nft.NVMDevice(**MEASURED, sigma=1.0),
    "shifted pair": nft.NVMDevice(**MEASURED, sigma=1.0, mapping="differential"),
    "pair": nft.NVMDevice(sigma=0.1, mapping="differential"),
    "fefet2 pair": nft.NVMDevice.preset("fefet2", sigma=0.1, mapping="differential"),
}


@pytest.mark.parametrize("name", GAUSSIAN)
def test_both_paths_draw_from_the_same_distribution(name):
    """Two samples a code, compared in mean (z), variance (F) and distribution (Kolmogorov-Smirnov); and each with the
    table.
    """
    nvm = GAUSSIAN[name]
    codes = range(16) if nvm.weight_bits == 4 else (0, 1, 2, 3, 5, 27, 64, 100, 128, 170, 228, 255)
    fast, device = samples(nvm, codes), samples(nvm.replace(sampling="per_device"), codes, draw=1)
    mean, std = (table.astype(np.float64) for table in nvm.tables())
    assert nvm.path == "fast" and nvm.replace(sampling="per_device").path == "per_device"
    for q, one, other in zip(codes, fast, device):
        if std[q] == 0:
            np.testing.assert_allclose(one, mean[q], rtol=1e-6)
            np.testing.assert_allclose(other, mean[q], rtol=1e-6)
            continue
        assert abs(one.mean() - other.mean()) < CRITICAL * std[q] * math.sqrt(2 / N)
        ratio = one.var(ddof=1) / other.var(ddof=1)
        assert 2 * min(stats.f.sf(ratio, N - 1, N - 1), stats.f.cdf(ratio, N - 1, N - 1)) > ALPHA
        assert stats.ks_2samp(one, other, method="asymp").pvalue > ALPHA
        for values in (one, other):
            assert stats.kstest(values, stats.norm(mean[q], std[q]).cdf).pvalue > ALPHA


def test_state_rule_weight_spreads_the_inner_codes_more():
    nvm = nft.NVMDevice.preset("fefet2", sigma=0.1, state_rule="weight")
    outer = 0.3 * math.sqrt(4369) / math.sqrt(2.2)
    for q, values in zip((63, 64, 191, 192), samples(nvm, (63, 64, 191, 192))):
        std = 2 * outer if 64 <= q <= 191 else outer
        assert stats.kstest(values, stats.norm(q, std).cdf).pvalue > ALPHA


@pytest.mark.parametrize("sampling", ["fast", "per_device"])
@pytest.mark.parametrize("relative_to, factor", [("max", 0.7776), ("spacing", 0.2592)])
def test_weight_noise_relative_to_the_largest_weight(sampling, relative_to, factor):
    """At M = 8, K = 2 the weight noise has std 0.7776 * sigma * max|W| (0.2592 relative to the spacing), whatever the
    code and
    its sign: normal on the negative crossbar as on the positive one. 2^20 weights, std good to 0.07 %."""
    nvm = nft.NVMDevice(8, 2, sigma=0.1, relative_to=relative_to, sampling=sampling)
    weight = torch.randn(2**20, generator=torch.Generator().manual_seed(3)) * 0.02
    noise = nft.program_weights(weight, nvm)[0] - nft.program_weights(weight, nvm, enabled=False)[0]
    noise = (noise / (0.1 * weight.abs().max())).double().numpy()
    assert noise.std() == pytest.approx(factor, rel=CRITICAL / math.sqrt(2 * 2**20) + 1e-4)
    for part in (noise, noise[weight < 0], noise[weight.abs() < weight.abs().max() / 600]):
        assert stats.kstest(part / noise.std(), "norm").pvalue > ALPHA


def test_devices_of_a_weight_are_independent():
    """Their variances add, each at its place, for any subset of noisy levels."""
    for noisy in ((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 0, 1), (1, 0, 0, 1)):
        nvm = nft.NVMDevice(level_mean=(0, 1, 2, 3), level_std=noisy, sigma=1.0, sampling="per_device")
        for q in (0b00011011, 0b11000001, 0b00000000):
            variance = sum(16**j * noisy[q >> 2 * j & 3] for j in range(4))
            (values,) = samples(nvm, [q])
            expect_mean(values, q, variance)
            expect_variance(values, q, variance)


# ---- devices that are not Gaussian: one device per weight (M = K = 2), so W_p / s is its conductance

SD = 0.3  # sigma 0.1 of three levels


def one_device(**options):
    return nft.NVMDevice(2, 2, sigma=0.1, **options)


def clipped_moments(mean, sd, low, high):
    """Mean and variance of min(max(X, low), high), X normal."""
    a, b = (low - mean) / sd, (high - mean) / sd
    mass, density = stats.norm.cdf, stats.norm.pdf
    inside = mass(b) - mass(a)
    first = low * mass(a) + high * mass(-b) + mean * inside + sd * (density(a) - density(b))
    second = (
        low**2 * mass(a)
        + high**2 * mass(-b)
        + (mean**2 + sd**2) * inside
        + 2 * mean * sd * (density(a) - density(b))
        + sd**2 * (a * density(a) - b * density(b))
    )
    return first, second - first**2


def test_clipped_conductances():
    for (low, high), level in ((bounds, level) for bounds in ((0, 1), (0.1, 0.6)) for level in range(4)):
        (values,) = samples(one_device(clip=(low, high)), [level])
        low, high = np.float32(3 * low), np.float32(3 * high)  # in levels, as the table holds them
        assert values.min() >= low and values.max() <= high
        mean, variance = clipped_moments(level, SD, float(low), float(high))
        expect_mean(values, mean, variance)
        expect_variance(values, mean, variance)
        expect_rate(values == low, stats.norm.cdf((low - level) / SD))
        expect_rate(values == high, stats.norm.sf((high - level) / SD))
        inside = values[(values > low) & (values < high)]
        if len(inside) > 1000:
            between = stats.truncnorm((low - level) / SD, (high - level) / SD, level, SD)
            assert stats.kstest(inside, between.cdf).pvalue > ALPHA


@pytest.mark.parametrize("c", [-0.5, 0.0, 0.5, 2.0])
def test_right_censored_gaussians(c):
    """z = min(z, c): an atom of mass P(z > c) at c, the normal below."""
    for level, values in zip((0, 3), samples(one_device(censor=c), (0, 3))):
        z = (values - level) / SD
        mean, variance = clipped_moments(0.0, 1.0, -40.0, c)
        expect_mean(z, mean, variance)
        expect_variance(z, mean, variance)
        assert z.max() <= c + 1e-5
        expect_rate(z > c - 1e-5, stats.norm.sf(c))
        assert stats.kstest(z[z < c - 1e-5], lambda x: stats.norm.cdf(x) / stats.norm.cdf(c)).pvalue > ALPHA


@pytest.mark.parametrize("c", [0.01, 0.5, 1.0, 2.0, 3.0, 5.0])
def test_truncated_gaussians(c):
    """Write-verify: normal given |z| <= c."""
    for level, values in zip((0, 2), samples(one_device(truncate=c), (0, 2))):
        z = (values - level) / SD
        assert np.abs(z).max() <= c * (1 + 1e-5) + 1e-5
        variance = 1 - 2 * c * stats.norm.pdf(c) / (2 * stats.norm.cdf(c) - 1)
        expect_mean(z, 0, variance)
        expect_variance(z, 0, variance)
        assert stats.kstest(z, stats.truncnorm(-c, c).cdf).pvalue > ALPHA


@pytest.mark.parametrize("p_off, p_on", [(0.1, 0.2), (0.3, 0.0), (0.0, 0.01), (0.5, 0.5), (1.0, 0.0)])
def test_stuck_devices(p_off, p_on):
    """A stuck device is exactly at 0 or at the top, whatever its level; the others are as they were."""
    for level, values in zip(range(4), samples(one_device(stuck=(p_off, p_on)), range(4))):
        expect_rate(values == 0, p_off)
        expect_rate(values == 3, p_on)
        free = values[(values != 0) & (values != 3)]
        assert len(free) == 0 or stats.kstest(free, stats.norm(level, SD).cdf).pvalue > ALPHA


def test_faults_come_after_the_limits():
    """A clipped device reaches 0.2 .. 0.8 of its maximum, a stuck one 0 or all of it."""
    for values in samples(one_device(clip=(0.2, 0.8), stuck=(0.1, 0.1)), (0, 3)):
        expect_rate(values == 0, 0.1)
        expect_rate(values == 3, 0.1)
        moving = values[(values != 0) & (values != 3)]
        assert moving.min() >= np.float32(0.6) and moving.max() <= np.float32(2.4)


def test_whether_a_device_is_stuck_has_nothing_to_do_with_its_noise_or_its_neighbours():
    nvm = one_device(stuck=(0.5, 0.0))
    (stuck,), (free,) = samples(nvm, [3]) == 0, samples(one_device(sampling="per_device"), [3])
    assert abs(stats.pointbiserialr(stuck, free)[0]) * math.sqrt(N) < CRITICAL
    assert abs(np.corrcoef(stuck[1:], stuck[:-1])[0, 1]) * math.sqrt(N) < CRITICAL


# ---- the same with several devices per weight, and on a pair of arrays

NOT_GAUSSIAN = {
    "clipped": dict(clip=(0.0, 1.0)),
    "censored": dict(censor=0.5),
    "truncated": dict(truncate=1.0),
    "stuck": dict(stuck=(0.05, 0.1)),
}


def level_moments(kind, level):
    """Mean and variance of one device's conductance in levels, sd 0.3."""
    if kind == "clipped":
        return clipped_moments(level, SD, 0.0, 3.0)
    if kind == "censored":
        mean, variance = clipped_moments(0.0, 1.0, -40.0, 0.5)
        return level + SD * mean, SD**2 * variance
    if kind == "truncated":
        return level, SD**2 * stats.truncnorm(-1, 1).var()
    first, second = 0.85 * level + 0.1 * 3, 0.85 * (level**2 + SD**2) + 0.1 * 9
    return first, second - first**2


@pytest.mark.parametrize("mapping", ["sign", "differential"])
@pytest.mark.parametrize("kind", NOT_GAUSSIAN)
def test_moments_of_a_weight_are_sums_over_its_devices(kind, mapping):
    """mean = sum_j 2^(jK) m(l_j), variance = sum_j 4^(jK) v(l_j); an idle array at level 0 subtracts its mean and adds
    its variance.
    """
    nvm = nft.NVMDevice(8, 2, sigma=0.1, mapping=mapping, **NOT_GAUSSIAN[kind])
    codes = (0, 27, 100, 255)
    for q, values in zip(codes, samples(nvm, codes)):
        mean = variance = 0.0
        for j in range(4):
            m, v = level_moments(kind, q >> 2 * j & 3)
            idle_m, idle_v = level_moments(kind, 0) if mapping == "differential" else (0, 0)
            mean += 4**j * (m - idle_m)
            variance += 16**j * (v + idle_v)
        expect_mean(values, mean, variance)
        expect_variance(values, mean, variance)


@pytest.mark.parametrize("sampling", ["fast", "per_device"])
def test_a_skewed_device_is_skewed_the_other_way_on_the_negative_crossbar(sampling):
    """A shift of the conductance moves a weight away from zero or towards it, not up or down: W_p = sign * s * ..."""
    nvm = nft.NVMDevice(level_mean=(0.5, 1.5, 2.5, 3.5), level_std=(0.1,) * 4, sigma=1.0, sampling=sampling)
    weight = torch.tensor([255.0, -255.0, 100.0, -100.0]).repeat(4096)
    shift = nft.program_weights(weight, nvm)[0] - weight
    for i, sign in enumerate((1, -1, 1, -1)):
        values = shift[i::4].double().numpy()
        expect_mean(values, sign * 0.5 * 85, 0.01 * 4369)
