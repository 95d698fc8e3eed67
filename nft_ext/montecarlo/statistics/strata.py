"""Mean and variance over chips from slices of a finite set of images: the formulas of docs/reference/monte_carlo.md."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy import ndarray

from nft_ext.montecarlo.statistics.slices import TILINGS_A_PERMUTATION

LEAST_PAIRS = (
    64  # of chips on the same slice, if there are so many slices: they are the degrees of freedom of the variance
)


@dataclass(frozen=True)
class SliceEstimate:
    """A ratio over chips and images, and the variance of its estimate; arrays have the leading shape of the input.

    mean: sum of numerators / sum of denominators. variance: of `mean`, estimated; per_chip: the part of it that falls
    as 1/R, times R. df: degrees of freedom of `per_chip`. within: variance of slices within a tiling (or over all,
    where conservative). conservative: True where `variance` is too large on average, for lack of chips on the same
    slices.
    """

    mean: ndarray
    variance: ndarray
    per_chip: ndarray
    within: ndarray
    df: int
    conservative: bool


def pairs(runs: int, count: int) -> ndarray:
    """The chips r of the first `runs` whose slice is shown again, to chip r + m: in tilings 0, 2, 4, ... (slices.py)."""
    first = np.arange(max(0, runs - count))
    return first[first // count % TILINGS_A_PERMUTATION == 0]


def least_exact(count: int) -> int:
    """The fewest chips whose variance is estimated without that of images: one tiling and LEAST_PAIRS of the next, or
    two tilings.
    """
    return 1 if count == 1 else count + min(count, LEAST_PAIRS)


def most_slices(runs: int) -> int:
    """The largest m whose `least_exact` is within `runs` chips; at least 1."""
    return max(1, runs // 2, runs - LEAST_PAIRS)


def estimate(numerator: ndarray, denominator: ndarray, count: int) -> SliceEstimate:
    """From the sums over each chip's slice, [..., R] in the order of the draws, R >= 2.

    count: m, slices of a tiling. The layout is that of `Slices`: pairs of tilings share their slices.

    Chips r and r + m of a pair of tilings see the same images, so half the mean square of their difference is the
    variance of a slice given its images, whatever the images and the sizes of slices. Complete tilings see every image
    equally often: nothing is added to it. The slices of an incomplete last tiling are e of m drawn without replacement,
    and add (P2/n) (e/R)^2 (1/e - 1/m), P2/n being what the variance within tilings exceeds the former by.
    """
    runs = numerator.shape[-1]
    mean = numerator.sum(-1) / denominator.sum(-1)
    # Linearized: the ratio's error is the mean of u, to first order. For accuracy with equal slices, exactly.
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
    """What the incomplete last tiling of `runs` chips adds to the variance; 0 if there is none."""
    rest = runs % count
    return np.maximum(found.within - found.per_chip, 0) * (rest / runs) ** 2 * (1 / np.maximum(rest, 1) - 1 / count)


def between_chips(found: SliceEstimate, correct: ndarray, sizes: ndarray, count: int, images: int) -> ndarray:
    """B2, the variance over chips of the accuracy on all images, [...]; by chance below 0. NaN where slices have one
    image.

    found: of `correct` [..., R] over `sizes` [R] or [..., R]. The variance of a slice holds B2 and that of its images:
    E within = B2 + k W + P2/I with k = 1/n - 1/I, and the images' own spread within a slice estimates W = P2 + X2.
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
