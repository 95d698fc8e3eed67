"""Mean and variance over chips, estimated from slices of a finite set of images.

docs/reference/monte_carlo.md derives the formulas.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy import ndarray

from nft_ext.montecarlo.statistics.slices import TILINGS_PER_PERMUTATION

LEAST_DF = 20  # below it a variance is uncertain by a third or more, and an interval from it is rough
SQUARED_NORMAL = 1.959964**2  # of the 97.5 % quantile
ROUNDING = 1e-11  # relative to the mean
LEAST_PAIRS = 64  # pairs of chips on the same slice, at most one per slice: degrees of freedom of the variance


@dataclass(frozen=True)
class SliceEstimate:
    """A ratio over chips and images, and the variance of its estimate. Arrays have the leading shape of the input.

    Attributes:
        mean: sum of numerators / sum of denominators.
        variance: estimated variance of `mean`.
        per_chip: R times the part of `variance` that falls as 1/R.
        within: variance of slices within a tiling, or over all slices if conservative.
        df: degrees of freedom of `per_chip` for normal chips: the number of squares in it.
        conservative: True if `variance` is too large on average, because too few chips shared a slice.
        runs: R, chips behind the estimate.
        skew: third central moment of a chip's value, divided by its second: how fast the variance grows with the mean.
            In the metric's unit; 0 if chips are alike.
        effective_df: degrees of freedom of `per_chip` by the kurtosis of its values, at most `df`; 0 if chips are
            alike. About twice the number of chips that differ, if these are few.
        inferences: sum of denominators; for a share, the number of inferences.
    """

    mean: ndarray
    variance: ndarray
    per_chip: ndarray
    within: ndarray
    df: int
    conservative: bool
    runs: int
    skew: ndarray
    effective_df: ndarray
    inferences: ndarray


def no_estimate(runs: int) -> SliceEstimate:
    """The estimate of R chips of which fewer than two have a value."""
    nan = np.array(np.nan)
    return SliceEstimate(nan, nan, nan, nan, 1, False, runs, skew=nan, effective_df=np.array(0.0), inferences=nan)


def pairs(runs: int, count: int) -> ndarray:
    """Chips r of the first `runs` whose slice chip r + m sees too: those in tilings 0, 2, 4, ... (slices.py)."""
    first = np.arange(max(0, runs - count))
    return first[first // count % TILINGS_PER_PERMUTATION == 0]


def least_exact(count: int) -> int:
    """The fewest chips that give a variance without that of images: one tiling and LEAST_PAIRS chips of the next.

    Two tilings if they have fewer chips.
    """
    return 1 if count == 1 else count + min(count, LEAST_PAIRS)


def most_slices(runs: int) -> int:
    """The largest m whose `least_exact` is within `runs` chips; at least 1."""
    return max(1, runs // 2, runs - LEAST_PAIRS)


def estimate(numerator: ndarray, denominator: ndarray, count: int) -> SliceEstimate:
    """Estimates a ratio and its variance from the sums over each chip's slice.

    Chips r and r + m of a pair of tilings see the same images. So half the mean square of their difference is the
    variance of a slice given its images. Complete tilings see every image equally often and add nothing to it. An
    incomplete last tiling has e of m slices, drawn without replacement, and adds (P2/n) (e/R)^2 (1/e - 1/m). P2/n is
    the variance within tilings minus the variance given the images.

    Args:
        numerator, denominator: [..., R] in the order of the draws, R >= 2, laid out as `Slices` does.
        count: m, slices per tiling.
    """
    runs = numerator.shape[-1]
    plain, u = _of_all(numerator, denominator, count)
    if not plain.conservative or runs < least_exact(count):
        return plain
    first = pairs(runs, count)
    ahead, behind = u[..., first], u[..., first + count]
    square = np.square(ahead - behind)
    per_chip = square.mean(-1) / 2
    tilings, rest = divmod(runs, count)
    tiled = u[..., : tilings * count].reshape(*u.shape[:-1], tilings, count)
    within = np.square(tiled - tiled.mean(-1, keepdims=True)).sum((-1, -2)) / (tilings * (count - 1))
    found = replace(
        plain,
        variance=per_chip / runs,
        per_chip=per_chip,
        within=within,
        df=len(first),
        conservative=False,
        skew=_ratio((square * (ahead + behind)).mean(-1), square.mean(-1)),
        effective_df=_effective_df(ahead - behind, len(first)),
    )
    return replace(found, variance=found.variance + rest_variance(found, np.array(runs), count)) if rest else found


def credible_estimate(numerator: ndarray, denominator: ndarray, count: int, share: bool) -> SliceEstimate:
    """`estimate`, with a larger variance if too few pairs of chips tell the exact one.

    64 pairs of a network with 2 % bad chips may have none, while all its chips have many. Then the plain variance of
    all slices decides, which is too large on average. If chips are regular and only few pairs differ, a share gets the
    upper bound of its exact variance: P pairs without a difference are 3.8 / P pairs that differ by one image. The
    plain variance replaces that bound where it is smaller.

    Args:
        numerator, denominator: [R] each, as for `estimate`.
        count: m, slices per tiling.
        share: whether the metric is a share of inferences, in 0 .. 1.
    """
    found = estimate(numerator, denominator, count)
    if found.conservative or count == 1:
        return found
    plain, u = _of_all(numerator, denominator, count)
    least = min(LEAST_DF, found.df / 2)
    # A difference of two chips has half the excess kurtosis of a chip, which all chips show better than few pairs.
    if 4 * found.df / (_kurtosis(u) + 1) < least:
        return plain
    if found.effective_df >= least:
        return found
    if not share:
        return plain
    first = pairs(found.runs, count)
    single = np.square(found.runs / found.inferences) / 2  # of a pair that differs by one image
    per_chip = _upper_bound(np.square(u[first] - u[first + count]) / 2, single)
    bounded = replace(found, per_chip=per_chip, variance=per_chip / found.runs)
    bounded = replace(bounded, variance=bounded.variance + rest_variance(found, np.array(found.runs), count))
    return bounded if bounded.variance < plain.variance else plain


def _upper_bound(values: ndarray, unit: ndarray) -> ndarray:
    """97.5 % upper bound of the mean of values >= 0, mostly 0: the score bound of a Poisson number of `unit`."""
    mean, spread = values.mean(), values.var()
    growth = max(unit, _ratio(((values - mean) ** 3).mean(), spread))
    centre = SQUARED_NORMAL * growth / (2 * len(values))
    return mean + centre + np.sqrt(centre**2 + SQUARED_NORMAL * spread / len(values))


def _of_all(numerator: ndarray, denominator: ndarray, count: int) -> tuple[SliceEstimate, ndarray]:
    """The estimate from the variance of all chips, as if slices were independent; and the first-order errors u."""
    runs = numerator.shape[-1]
    mean = numerator.sum(-1) / denominator.sum(-1)
    # To first order, the ratio's error is the mean of u. This is exact for accuracy with equal slices.
    u = (numerator - mean[..., None] * denominator) / denominator.mean(-1)[..., None]
    # Chips that are alike differ by the rounding of their mean, which is no variance.
    u = np.where(np.abs(u).max(-1, keepdims=True) > ROUNDING * np.abs(mean)[..., None], u, 0.0)
    spread = np.square(u).sum(-1) / (runs - 1)
    return (
        SliceEstimate(
            mean,
            variance=spread / runs,
            per_chip=spread,
            within=spread,
            df=runs - 1,
            conservative=count > 1,
            runs=runs,
            skew=_ratio((u**3).mean(-1), np.square(u).mean(-1)),
            effective_df=_effective_df(u, runs - 1),
            inferences=denominator.sum(-1),
        ),
        u,
    )


def _ratio(top: ndarray, bottom: ndarray) -> ndarray:
    """top / bottom, and 0 where bottom is 0."""
    return np.where(bottom > 0, top / np.where(bottom > 0, bottom, 1.0), 0.0)


def _kurtosis(values: ndarray) -> ndarray:
    """E x^4 / (E x^2)^2 along the last dimension; 0 if all values are 0. 3 for normal values, 1 at least."""
    return _ratio((values**4).mean(-1), np.square(np.square(values).mean(-1)))


def _effective_df(values: ndarray, df: int) -> ndarray:
    """Degrees of freedom of the mean square of `values`: twice its square over its variance, at most `df`."""
    kurtosis = _kurtosis(values)
    return np.where(kurtosis > 0, np.minimum(2 * df / np.maximum(kurtosis - 1, 1e-9), df), 0.0)


def rest_variance(found: SliceEstimate, runs: ndarray, count: int) -> ndarray:
    """The variance that the incomplete last tiling of `runs` chips adds; 0 without one."""
    rest = runs % count
    return np.maximum(found.within - found.per_chip, 0) * (rest / runs) ** 2 * (1 / np.maximum(rest, 1) - 1 / count)


def between_chips(found: SliceEstimate, correct: ndarray, sizes: ndarray, count: int, images: int) -> ndarray:
    """B2, the variance over chips of the accuracy on all images. An estimate may be below 0.

    The variance of a slice contains B2 and the variance of its images: E within = B2 + k W + P2/I with k = 1/n - 1/I.
    The spread of images within a slice estimates W = P2 + X2.

    Args:
        found: `estimate` of `correct` over `sizes`.
        correct: [..., R], correct images per chip.
        sizes: [R] or [..., R], images per chip.
        count: m, slices per tiling.
        images: I, images of the set.

    Returns:
        B2 [...]; NaN if slices have one image.
    """
    share = correct / sizes
    some = np.broadcast_to(sizes > 1, share.shape)
    spread = np.where(some, sizes / np.maximum(sizes - 1, 1) * share * (1 - share), 0.0)
    with np.errstate(invalid="ignore"):
        among_images = spread.sum(-1) / np.where(some.any(-1), some.sum(-1), np.nan)
    return between(found, among_images, count, images)


def between(found: SliceEstimate, among_images, count: int, images: int):
    """B2 as in `between_chips`, from W, the variance among the images of a slice."""
    k = (count - 1) / images
    if found.conservative:
        return found.within - k * among_images
    return (1 - 1 / count) * found.within + found.per_chip / count - k * among_images
