"""Mean and variance over chips, estimated from slices of a finite set of images.

docs/reference/monte_carlo.md derives the formulas.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy import ndarray

from nft_ext.montecarlo.statistics.slices import TILINGS_PER_PERMUTATION

LEAST_PAIRS = 64  # pairs of chips on the same slice, at most one per slice: degrees of freedom of the variance


@dataclass(frozen=True)
class SliceEstimate:
    """A ratio over chips and images, and the variance of its estimate. Arrays have the leading shape of the input.

    Attributes:
        mean: sum of numerators / sum of denominators.
        variance: estimated variance of `mean`.
        per_chip: R times the part of `variance` that falls as 1/R.
        within: variance of slices within a tiling, or over all slices if conservative.
        df: degrees of freedom of `per_chip`.
        conservative: True if `variance` is too large on average, because too few chips shared a slice.
    """

    mean: ndarray
    variance: ndarray
    per_chip: ndarray
    within: ndarray
    df: int
    conservative: bool


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
    mean = numerator.sum(-1) / denominator.sum(-1)
    # To first order, the ratio's error is the mean of u. This is exact for accuracy with equal slices.
    u = (numerator - mean[..., None] * denominator) / denominator.mean(-1)[..., None]
    if count == 1 or runs < least_exact(count):
        spread = np.square(u).sum(-1) / (runs - 1)
        return SliceEstimate(mean, spread / runs, spread, spread, runs - 1, conservative=count > 1)
    first = pairs(runs, count)
    per_chip = np.square(u[..., first] - u[..., first + count]).mean(-1) / 2
    tilings, rest = divmod(runs, count)
    tiled = u[..., : tilings * count].reshape(*u.shape[:-1], tilings, count)
    within = np.square(tiled - tiled.mean(-1, keepdims=True)).sum((-1, -2)) / (tilings * (count - 1))
    found = SliceEstimate(mean, per_chip / runs, per_chip, within, len(first), conservative=False)
    return replace(found, variance=found.variance + rest_variance(found, np.array(runs), count)) if rest else found


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
    k = (count - 1) / images
    if found.conservative:
        return found.within - k * among_images
    return (1 - 1 / count) * found.within + found.per_chip / count - k * among_images
