"""Estimates the time of an evaluation before it begins, from a few timed passes and, for a target, a few chips."""

from __future__ import annotations

import math
import textwrap
import time
from dataclasses import dataclass
from typing import Any

from torch import nn

from nft_ext._common.checks import fail, instance
from nft_ext._common.progress import duration
from nft_ext.metrics.distributions import student_t_quantile
from nft_ext.montecarlo.execution.arguments import checked
from nft_ext.montecarlo.execution.cost import Cost, measure
from nft_ext.montecarlo.execution.pilot import pilot
from nft_ext.montecarlo.execution.plan import Plan, plan
from nft_ext.montecarlo.execution.preparation import check, prepared
from nft_ext.montecarlo.execution.session import Session
from nft_ext.montecarlo.report.text_table import WIDTH, align
from nft_ext.montecarlo.statistics.intervals import CONFIDENCE
from nft_ext.montecarlo.statistics.slice_estimate import SQUARED_NORMAL, least_exact
from nft_ext.montecarlo.statistics.slices import Slices
from nft_ext.montecarlo.statistics.stopping import ALIKE_RUNS, PILOT_RUNS, Goal
from nft_ext.montecarlo.tasks.forward import ForwardFunction

# 95 % interval of a variance estimated from the pilot's 24 chips, as factors: chi-square with 23 degrees of freedom,
# 23 / 38.08 and 23 / 11.69.
VARIANCE_RANGE = (0.604, 1.968)


@dataclass(frozen=True)
class CostEstimate:
    """The outcome of `estimate_cost`. `str(estimate)` is a short table.

    Attributes:
        protocol: "full" or "stratified".
        chips: expected number of chips.
        chips_range: 95 % range of that number with a target; else (chips, chips).
        images_a_chip: images per chip.
        images: images of the set.
        chips_per_pass, batch_size: chips per pass and images per batch.
        ranks: number of processes that share the passes.
        cost: the measured costs.
        preparing: seconds before the first chip, after the data are read: probes and, for slices or a target, a pilot.
        slice_images: the number that repeats these slices ("auto" may choose another one next time); None: all images.
        reachable: whether max_runs chips are expected to reach the target.
    """

    protocol: str
    chips: int
    chips_range: tuple[int, int]
    images_a_chip: int
    images: int
    chips_per_pass: int
    batch_size: int
    ranks: int
    cost: Cost
    preparing: float
    slice_images: int | None
    reachable: bool = True

    def _batches(self) -> list[int]:
        """Images per forward of a pass."""
        full, rest = divmod(self.images_a_chip, self.batch_size)
        return [self.batch_size] * full + ([rest] if rest else [])

    def passes(self, chips: int | None = None) -> int:
        """Number of passes for `chips` chips (None: the expected number). The last pass is padded."""
        return -(-(self.chips if chips is None else chips) // self.chips_per_pass)

    def parts(self) -> dict[str, float]:
        """Seconds of work on all ranks together, by part: preparing, overhead, programming, images."""
        forwards, padded = self.passes() * len(self._batches()), self.passes() * self.chips_per_pass
        return {
            "preparing": self.preparing,
            "overhead of passes": forwards * self.cost.overhead,
            "programming": padded * len(self._batches()) * self.cost.chip,
            "images": padded * self.images_a_chip * self.cost.image,
        }

    def seconds_of(self, chips: int) -> float:
        """Wall time in seconds for `chips` chips, including preparation. Ranks take passes one by one."""
        one = sum(self.cost.forward(self.chips_per_pass, images) for images in self._batches())
        return self.preparing + -(-self.passes(chips) // self.ranks) * one

    @property
    def seconds(self) -> float:
        """Expected wall time in seconds."""
        return self.seconds_of(self.chips)

    @property
    def seconds_range(self) -> tuple[float, float]:
        """Wall time in seconds over `chips_range`."""
        low, high = self.chips_range
        return self.seconds_of(low), self.seconds_of(high)

    def to_dict(self) -> dict[str, Any]:
        """The whole estimate as JSON values."""
        return {
            **vars(self),
            "cost": vars(self.cost),
            "seconds": self.seconds,
            "seconds_range": self.seconds_range,
            "parts": self.parts(),
        }

    def table(self) -> str:
        """The estimate as text."""
        c, chips = self.cost, f"{self.chips:,} chips"
        if self.chips_range != (self.chips, self.chips):
            chips += f" (95 %: {self.chips_range[0]:,} to {self.chips_range[1]:,})"
        parts = self.parts()
        rows = [
            [name, _time(seconds), f"{100 * seconds / sum(parts.values()):.0f} %"] for name, seconds in parts.items()
        ]
        when = _time(self.seconds)
        if self.chips_range[0] < self.chips_range[1]:
            when += f" ({_time(self.seconds_range[0])} to {_time(self.seconds_range[1])})"
        lines = [
            f"Estimate ({self.protocol}): {chips} x {self.images_a_chip:,} images, "
            f"{self.chips_per_pass} chip(s) per pass",
            f"  a pass of S chips with b images each takes {_small(c.overhead)} + S x {_small(c.chip)} + "
            f"S x b x {_small(c.image)} (timed passes within {100 * c.misfit:.0f} %)",
            *("  " + line for line in align(rows)),
            f"  total {when}" + (f" with {self.ranks} processes" if self.ranks > 1 else ""),
        ]
        if not self.reachable:
            lines += textwrap.wrap(
                "max_runs chips are not expected to reach the target; monte_carlo runs them and says so in the report",
                WIDTH,
                initial_indent="  note: ",
                subsequent_indent="        ",
            )
        return "\n".join(lines)

    __str__ = table


def estimate_cost(
    model: nn.Module,
    data,
    *,
    forward: ForwardFunction | None = None,
    device=None,
    resume=None,
    ranks: bool | None = None,
    progress=None,
    cost: Cost | None = None,
    runs: int = 200,
    seed: int = 0,
    sigma: float | None = None,
    protocol: str = "full",
    slice_images: int | str = "auto",
    target_ci: float | None = None,
    min_runs: int = PILOT_RUNS,
    max_runs: int = 20_000,
    metrics: Any = ("accuracy", "ekl"),
    chips_per_pass: int | str = "auto",
    batch_size: int | str = "auto",
    precision: str = "float32",
) -> CostEstimate:
    """Estimates the time of `monte_carlo` with the same arguments on this machine.

    It times a few passes and evaluates no chip. The time is `preparing + passes * (overhead + S chip + S b image)`,
    summed over the batches of a pass, with S chips per pass and b images per batch. The three costs are fitted to timed
    passes of similar shape. With a target, a pilot of 24 chips measures the variance per chip v. The number of chips is
    then `R = v (t / target)^2`, and at least the pilot of the stopping rule (docs/reference/monte_carlo.md).

    Args:
        model, data, forward, device: as `monte_carlo` takes them.
        runs, seed, sigma, protocol, slice_images, target_ci, min_runs, max_runs: as `monte_carlo` takes them.
        metrics, chips_per_pass, batch_size, precision: as `monte_carlo` takes them.
        ranks: as `monte_carlo` takes it. Under torchrun every rank makes this call. All ranks measure at the same time,
            and rank 0's measurements count.
        resume, progress: accepted and not used. Chips that a resume file already has are counted too.
        cost: `cost` of an earlier estimate; None: measured now.

    Returns:
        The expected number of chips and seconds, with ranges.

    Raises:
        TypeError, ValueError: as `monte_carlo`.
    """
    if cost is not None:
        instance("cost", cost, Cost, "the `cost` of an estimate, or None")
    asked = checked(
        forward=forward,
        runs=runs,
        seed=seed,
        sigma=sigma,
        protocol=protocol,
        slice_images=slice_images,
        target_ci=target_ci,
        min_runs=min_runs,
        max_runs=max_runs,
        metrics=metrics,
        chips_per_pass=chips_per_pass,
        batch_size=batch_size,
        precision=precision,
    )
    check(model, asked)
    with Session(None, ranks) as session, prepared(session, model, data, asked, device) as ready:
        asked = ready.asked
        several, evaluator = ready.alone is None, ready.evaluator
        made = plan(asked, evaluator, several)
        most = session.agree("estimate/slices", made.slices and made.slices.most)
        planned = Plan(None if most is None else Slices(asked.seed, len(evaluator.examples), most), made.pilot)
        found = None
        if asked.goal is not None:
            if evaluator.examples.reason is not None:
                rule = "must be None to estimate the cost for batches that cannot be cut into examples"
                fail("target_ci", rule, evaluator.examples.reason)
            found = session.agree("estimate/pilot", made.pilot or pilot(evaluator, several).to_dict())
        per_pass = session.agree("estimate/chips", ready.chips_per_pass(planned))
        images = len(evaluator.examples)
        n = images if planned.slices is None else planned.slices.size
        preparing = time.perf_counter() - ready.began
        if cost is None:
            session.meet()
            cost = measure(
                evaluator.pilot_pass, per_pass, min(n, evaluator.batch_size), several and asked.most_runs > 1
            )
        cost = Cost(**session.agree("estimate/cost", vars(cost)))
        preparing = session.agree("estimate/preparing", preparing)
        size = session.size
    expected, low, high, reachable = _chips(asked.goal, asked.runs, found, n, images)
    return CostEstimate(
        protocol,
        expected,
        (low, high),
        n,
        images,
        per_pass,
        evaluator.batch_size,
        size,
        cost,
        preparing,
        most,
        reachable,
    )


def _chips(
    goal: Goal | None, runs: int, pilot_found: dict[str, Any] | None, n: int, images: int
) -> tuple[int, int, int, bool]:
    """Expected number of chips, its 95 % range (low, high), and whether max_runs chips are expected to reach the goal.

    pilot_found: `Pilot.to_dict()`; needed with a goal.
    """
    if goal is None or pilot_found is None:
        return runs, runs, runs, True
    slices = -(-images // n)
    largest = goal.target / student_t_quantile(0.5 + CONFIDENCE / 2, max(goal.low, PILOT_RUNS) - 1)

    # The pilot measured B2 + seen, the variance over chips on its own images. The factors apply to this variance.
    seen, rest = ((1 / count - 1 / images) * pilot_found["X2"] for count in (pilot_found["images"], n))

    def needed(factor: float) -> int:
        between = max(0.0, factor * (pilot_found["B2"] + seen) - seen)
        # The steps of the stopping rule (statistics/stopping.py) with the expected variances. The floor is of the items
        # of a share; other metrics have none.
        items = pilot_found["items_an_image"]
        floor = 0.0 if items is None else SQUARED_NORMAL * abs(2 * pilot_found["mean"] - 1) / (items * n * goal.target)
        start = max(goal.low, PILOT_RUNS if between + rest > 0 else ALIKE_RUNS)
        exact = math.ceil((between + rest) / largest**2 + floor)
        if slices == 1 or 2 * slices <= start:
            return max(start, exact)
        cautious = math.ceil((between + rest + (1 / n - 1 / images) * pilot_found["P2"]) / largest**2 + floor)
        return max(start, cautious) if cautious <= least_exact(slices) else max(least_exact(slices), exact)

    expected, low, high = (min(needed(factor), goal.high) for factor in (1.0, *VARIANCE_RANGE))
    return expected, low, high, needed(1.0) <= goal.high


def _small(seconds: float) -> str:
    """A short time with its unit."""
    return f"{1e3 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def _time(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s" if seconds < 60 else duration(seconds)
