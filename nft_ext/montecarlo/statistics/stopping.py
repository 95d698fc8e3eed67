"""How many chips: a number given, or as many as a target half-width takes (Stein's two stages)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy import ndarray

from nft_ext.montecarlo.statistics.intervals import CONFIDENCE, student_t_quantile
from nft_ext.montecarlo.statistics.strata import SliceEstimate, least_exact, rest_variance

PILOT_RUNS = 64  # fewer would cost more in Student's factor than they save
LEAST_GROWTH = 0.05  # of the chips so far, when they have to be more: not one by one


@dataclass(frozen=True)
class Goal:
    """target: the half-width of the 95 % interval of the mean accuracy to reach; chips between `low` and `high`."""

    target: float
    low: int
    high: int


@dataclass(frozen=True)
class Precision:
    """The standard error behind an interval and its degrees of freedom. reached: the goal; pilot_runs: the chips that
    decided.
    """

    standard_error: float
    df: int
    reached: bool | None = None
    pilot_runs: int | None = None

    @property
    def half_width(self) -> float:
        """Of the 95 % interval: t(df) * standard error."""
        return student_t_quantile(0.5 + CONFIDENCE / 2, self.df) * self.standard_error


def precision_of(found: SliceEstimate) -> Precision:
    """Of a number of chips that did not depend on what they showed."""
    return Precision(float(np.sqrt(found.variance)), found.df)


def until(goal: Goal, count: int, more: Callable[[int, int], None], estimate: Callable[[], SliceEstimate]) -> Precision:
    """Collects chips until the goal is met, or goal.high chips.

    count: m, slices of a tiling (1: every chip sees all images). more(first, last) collects chips; estimate() is of all
    so far.

    A pilot of PILOT_RUNS chips (goal.low if that is more) fixes the number of chips: the smallest R with t(df)
    sqrt(variance at R) <= target, the variance a chip being the pilot's. The mean of all R chips and that interval have
    the stated coverage (Stein 1945) if chips are normal, since the mean of a normal sample is independent of its
    variance. Chips are often skewed: a pilot without a bad one then has both a high mean and a low variance. So the
    interval of all R chips has to be within the target too, or R grows until it is; the wider of the two intervals is
    the answer. The exact variance of slices takes `least_exact` chips. If the pilot has fewer, the plain variance of
    slices, which is on the safe side, decides, unless it asks for more than those: then they are the pilot.
    """
    pilot = max(PILOT_RUNS, goal.low)
    if 2 * count <= pilot:
        pilot = -(-pilot // (2 * count)) * 2 * count  # whole pairs of tilings: no chip is left out of the variance
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
    """Variance of the mean of `runs` chips, as far as the estimate `found` of fewer tells."""
    variance = found.per_chip / runs
    if not found.conservative and count > 1:
        variance = variance + rest_variance(found, runs, count)
    return variance


def runs_for(goal: Goal, found: SliceEstimate, pilot: int, count: int) -> int:
    """The smallest number of chips, at least `pilot`, that meets the goal by the estimate `found`; goal.high + 1 if
    none does.
    """
    largest = goal.target / student_t_quantile(0.5 + CONFIDENCE / 2, found.df)
    least = max(pilot, int(np.ceil(found.per_chip / largest**2)))
    # An incomplete tiling adds variance, a complete one does not: look no further than the next that is.
    candidates = np.arange(least, least + count)
    fit = variance_at(candidates, found, count) <= largest**2
    return int(min(candidates[fit.argmax()], goal.high + 1)) if fit.any() else goal.high + 1
