"""The 95 % interval of a mean over chips, for the report and for the stopping rule."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy import ndarray

from nft_ext.metrics.distributions import student_t_quantile
from nft_ext.montecarlo.statistics.intervals import CONFIDENCE
from nft_ext.montecarlo.statistics.slice_estimate import LEAST_DF, SQUARED_NORMAL, SliceEstimate, rest_variance

RULE_OF_THREE = -math.log(1 - CONFIDENCE)  # n inferences without an error bound the rate of errors by 3.0 / n


@dataclass(frozen=True)
class Precision:
    """A 95 % interval and what it rests on.

    Attributes:
        standard_error: standard error of the mean.
        below, above: distances from the mean to the lower and the upper end of the interval.
        df: effective degrees of freedom of the variance; NaN if unknown (reports of version 0.2).
        conservative: True if the interval is too wide on average.
        reached: whether the goal is reached; None without a goal.
        pilot_runs: chips of the pilot; None without a goal.
    """

    standard_error: float
    below: float
    above: float
    df: float
    conservative: bool = False
    reached: bool | None = None
    pilot_runs: int | None = None

    @property
    def half_width(self) -> float:
        """The larger of the two distances, which is `ci95` of a report."""
        return max(self.below, self.above)

    @property
    def rough(self) -> bool:
        """Whether the variance has fewer than 20 degrees of freedom."""
        return self.df < LEAST_DF and not math.isnan(self.half_width)


def precision_of(found: SliceEstimate, share: bool) -> Precision:
    """The precision of an estimate if its number of chips was fixed beforehand.

    Args:
        found: the estimate.
        share: whether the metric is a share of inferences, in 0 .. 1.
    """
    below, above = _arms(found, found.variance, found.runs, share)
    return _within_range(float(found.mean), below, above, found, share)


def predicted(found: SliceEstimate, now: SliceEstimate, count: int, share: bool) -> Precision:
    """The precision of the mean of `now`, with the variance and the skew of the earlier estimate `found`."""
    below, above = _arms(found, variance_at(np.array(now.runs), found, count), now.runs, share)
    return _within_range(float(now.mean), below, above, found, share)


def wider(one: Precision, other: Precision) -> Precision:
    """The interval that holds both intervals around one mean."""
    return Precision(
        max(one.standard_error, other.standard_error),
        max(one.below, other.below),
        max(one.above, other.above),
        min(one.df, other.df),
        one.conservative or other.conservative,
    )


def _arms(found: SliceEstimate, variance: ndarray, runs: int, share: bool) -> tuple[float, float]:
    """Lengths of the interval below and above the mean.

    An arm a solves a^2 = t^2 variance + z^2 g a / runs: the variance at its end, when the variance grows by g per unit
    of the mean. It is the score interval of a Poisson number for rare errors, and t * standard error for g = 0.
    """
    t = _student(found, share)
    low, high = _growth(found, share)
    centres = [SQUARED_NORMAL * g / (2 * runs) for g in (low, high)]
    below, above = (c + math.sqrt(c**2 + t**2 * float(variance)) for c in centres)
    if share:
        least = RULE_OF_THREE * found.runs / (float(found.inferences) * runs)
        below, above = max(below, least), max(above, least)
    return below, above


def _student(found: SliceEstimate, share: bool) -> float:
    """Student's factor. A rough variance counts by its effective degrees of freedom, except for a share.

    The floor and the skew of a share make up for the few errors behind its variance.
    """
    effective = float(found.effective_df)
    df = found.df if share or effective >= LEAST_DF else max(effective, 1.0)
    return student_t_quantile(0.5 + CONFIDENCE / 2, min(df, found.df))


def _growth(found: SliceEstimate, share: bool) -> tuple[float, float]:
    """By how much the variance per chip grows per unit that the mean falls, and rises; at least 0.

    It is the chips' skew. For a share it is at least the skew of independent errors, (1 - 2 mean) / images per chip.
    """
    skew = float(found.skew)
    least = (1 - 2 * float(found.mean)) * found.runs / float(found.inferences) if share else 0.0
    return max(-skew, -least, 0.0), max(skew, least, 0.0)


def _within_range(mean: float, below: float, above: float, found: SliceEstimate, share: bool) -> Precision:
    if share:
        below, above = min(below, mean), min(above, 1 - mean)
    return Precision(
        float(np.sqrt(found.variance)), below, above, float(found.effective_df), conservative=found.conservative
    )


def variance_at(runs: ndarray, found: SliceEstimate, count: int) -> ndarray:
    """Variance of the mean of `runs` chips, predicted from the estimate `found` of fewer chips."""
    variance = found.per_chip / runs
    if not found.conservative and count > 1:
        variance = variance + rest_variance(found, runs, count)
    return variance


def runs_for(target: float, found: SliceEstimate, least: int, most: int, count: int, share: bool) -> int:
    """The smallest number of chips >= `least` whose interval is within `target` by `found`; else most + 1.

    a <= target where t^2 variance + z^2 g target / runs <= target^2, by the equation of `_arms`.
    """
    t = _student(found, share)
    if not math.isfinite(found.per_chip):
        return most + 1
    largest = target / t
    growth = max(_growth(found, share)) * SQUARED_NORMAL / t**2 * target
    least = max(least, int(np.ceil((found.per_chip + growth) / largest**2)))
    if share:
        least = max(least, math.ceil(RULE_OF_THREE * found.runs / (float(found.inferences) * target)))
    # An incomplete tiling adds variance and a complete one does not, so the search ends at the next complete one.
    candidates = np.arange(least, least + count)
    fit = variance_at(candidates, found, count) + growth / candidates <= largest**2
    return int(min(candidates[fit.argmax()], most + 1)) if fit.any() else most + 1
