"""Decides how many chips reach a target half-width, by Stein's two stages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from nft_ext.montecarlo.statistics.precision import Precision, precision_of, predicted, runs_for, wider
from nft_ext.montecarlo.statistics.slice_estimate import LEAST_DF, SliceEstimate, least_exact

PILOT_RUNS = 64  # with fewer chips, Student's factor costs more than the pilot saves
ALIKE_RUNS = 299  # a pilot of chips that hardly differ ends here: less than 1 % of chips may be unlike them (95 %)
LEAST_GROWTH = 0.05  # smallest growth per step, relative to the chips so far


@dataclass(frozen=True)
class Goal:
    """A target for a mean over chips.

    Attributes:
        target: half-width of the 95 % interval to reach, in the metric's unit; a fraction for the accuracy.
        low, high: smallest and largest number of chips.
    """

    target: float
    low: int
    high: int


def until(
    goal: Goal,
    count: int,
    more: Callable[[int, int], None],
    estimate: Callable[[], SliceEstimate],
    share: bool = True,
) -> Precision:
    """Collects chips until the goal is reached, or goal.high chips.

    A pilot of max(PILOT_RUNS, goal.low) chips fixes the number of chips: the smallest R whose interval is within the
    target, with the pilot's variance per chip. For normal values this interval around the mean of all R chips has the
    stated coverage (Stein 1945), because mean and variance of a normal sample are independent.

    A variance with fewer than LEAST_DF effective degrees of freedom says little. So a pilot whose chips hardly differ
    grows until enough chips differ, or to ALIKE_RUNS chips. Later chips join a pilot that is still rough.

    The values of chips are often skewed. A pilot without a bad chip then has a high mean and a low variance. So the
    interval of all R chips must also be within the target, else R grows. The wider of the two intervals is returned.

    The exact variance of slices needs `least_exact` chips. A smaller pilot uses the plain variance of slices, which is
    too large on average. If that asks for more than `least_exact` chips, `least_exact` chips become the pilot.

    Args:
        goal: target and limits.
        count: m, slices per tiling (1: every chip sees all images).
        more: more(first, last) collects the chips first .. last - 1.
        estimate: estimate() of all chips so far, by `credible_estimate`.
        share: whether the metric is a share of inferences, in 0 .. 1.

    Returns:
        The precision of the mean, and whether the goal is reached.
    """

    def needed_by(found: SliceEstimate) -> int:
        return runs_for(goal.target, found, done, goal.high, count, share)

    pilot = max(PILOT_RUNS, goal.low)
    if 2 * count <= pilot:
        pilot = -(-pilot // (2 * count)) * 2 * count  # whole pairs of tilings, so that every chip enters the variance
    done = min(pilot, goal.high)
    more(0, done)
    first = estimate()
    while first.effective_df < LEAST_DF and done < min(ALIKE_RUNS, goal.high):
        last = min(2 * done, ALIKE_RUNS, goal.high)
        more(done, last)
        done, first = last, estimate()
    needed = needed_by(first)
    exact = least_exact(count)
    if first.conservative and done < exact < needed and exact <= goal.high:
        more(done, exact)
        done, first = exact, estimate()
        needed = needed_by(first)
    pilot, found = done, first
    while done < min(needed, goal.high):
        least = done + int(LEAST_GROWTH * done) if found is not first else needed
        rough = first.effective_df < LEAST_DF
        last = min(max(needed, least), goal.high, 2 * done if rough else goal.high)
        more(done, last)
        done, found = last, estimate()
        if rough:
            pilot, first = done, found
        needed = max(needed_by(f) for f in (first, found))
    if needed > done:
        return replace(precision_of(found, share), reached=False, pilot_runs=pilot)
    both = wider(predicted(first, found, count, share), precision_of(found, share))
    return replace(both, reached=True, pilot_runs=pilot)
