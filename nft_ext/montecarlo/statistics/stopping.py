"""Decides how many chips reach a target half-width, by Stein's two stages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy import ndarray

from nft_ext.montecarlo.statistics.intervals import CONFIDENCE, student_t_quantile
from nft_ext.montecarlo.statistics.slice_estimate import SliceEstimate, least_exact, rest_variance

PILOT_RUNS = 64  # with fewer chips, Student's factor costs more than the pilot saves
LEAST_GROWTH = 0.05  # smallest growth per step, relative to the chips so far


@dataclass(frozen=True)
class Goal:
    """A target for the mean accuracy.

    Attributes:
        target: half-width of the 95 % interval to reach, a fraction.
        low, high: smallest and largest number of chips.
    """

    target: float
    low: int
    high: int


@dataclass(frozen=True)
class Precision:
    """The standard error behind an interval.

    Attributes:
        standard_error: standard error of the mean.
        df: its degrees of freedom.
        reached: whether the goal is reached; None without a goal.
        pilot_runs: chips of the pilot; None without a goal.
    """

    standard_error: float
    df: int
    reached: bool | None = None
    pilot_runs: int | None = None

    @property
    def half_width(self) -> float:
        """Half-width of the 95 % interval: t(df) * standard_error."""
        return student_t_quantile(0.5 + CONFIDENCE / 2, self.df) * self.standard_error


def precision_of(found: SliceEstimate) -> Precision:
    """The precision of an estimate if its number of chips was fixed beforehand."""
    return Precision(float(np.sqrt(found.variance)), found.df)


def until(goal: Goal, count: int, more: Callable[[int, int], None], estimate: Callable[[], SliceEstimate]) -> Precision:
    """Collects chips until the goal is reached, or goal.high chips.

    A pilot of max(PILOT_RUNS, goal.low) chips fixes the number of chips: the smallest R with t(df) sqrt(variance at R)
    <= target, where the variance per chip is the pilot's. For normal values this interval around the mean of all R
    chips has the stated coverage (Stein 1945), because mean and variance of a normal sample are independent.

    The values of chips are often skewed. A pilot without a bad chip then has a high mean and a low variance. So the
    interval of all R chips must also be within the target, else R grows. The wider of the two intervals is returned.

    The exact variance of slices needs `least_exact` chips. A smaller pilot uses the plain variance of slices, which is
    too large on average. If that asks for more than `least_exact` chips, `least_exact` chips become the pilot.

    Args:
        goal: target and limits.
        count: m, slices per tiling (1: every chip sees all images).
        more: more(first, last) collects the chips first .. last - 1.
        estimate: estimate() of all chips so far.

    Returns:
        The precision of the mean, and whether the goal is reached.
    """
    pilot = max(PILOT_RUNS, goal.low)
    if 2 * count <= pilot:
        pilot = -(-pilot // (2 * count)) * 2 * count  # whole pairs of tilings, so that every chip enters the variance
    done = pilot = min(pilot, goal.high)
    more(0, done)
    found = first = estimate()
    needed = runs_for(goal, first, done, count)
    exact = least_exact(count)
    if first.conservative and needed > exact and exact <= goal.high:
        more(done, exact)
        done = pilot = exact
        found = first = estimate()
        needed = runs_for(goal, first, done, count)
    while done < min(needed, goal.high):
        least = done + int(LEAST_GROWTH * done) if found is not first else needed
        last = min(max(needed, least), goal.high)
        more(done, last)
        done = last
        found = estimate()
        needed = max(runs_for(goal, f, done, count) for f in (first, found))
    if needed > done:
        return replace(precision_of(found), reached=False, pilot_runs=pilot)
    by_pilot = Precision(float(np.sqrt(variance_at(np.array(done), first, count))), first.df)
    wider = max(by_pilot, precision_of(found), key=lambda precision: precision.half_width)
    return replace(wider, reached=True, pilot_runs=pilot)


def variance_at(runs: ndarray, found: SliceEstimate, count: int) -> ndarray:
    """Variance of the mean of `runs` chips, predicted from the estimate `found` of fewer chips."""
    variance = found.per_chip / runs
    if not found.conservative and count > 1:
        variance = variance + rest_variance(found, runs, count)
    return variance


def runs_for(goal: Goal, found: SliceEstimate, pilot: int, count: int) -> int:
    """The smallest number of chips >= `pilot` that reaches the goal by the estimate `found`; else goal.high + 1."""
    largest = goal.target / student_t_quantile(0.5 + CONFIDENCE / 2, found.df)
    least = max(pilot, int(np.ceil(found.per_chip / largest**2)))
    # An incomplete tiling adds variance and a complete one does not, so the search ends at the next complete one.
    candidates = np.arange(least, least + count)
    fit = variance_at(candidates, found, count) <= largest**2
    return int(min(candidates[fit.argmax()], goal.high + 1)) if fit.any() else goal.high + 1
