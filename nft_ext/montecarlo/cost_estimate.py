"""What an evaluation will cost, told before it begins: from a few timed passes and, for a target, a few chips."""

from __future__ import annotations

import math
import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from nft_ext._common.progress import duration
from nft_ext.montecarlo.execution.arguments import Arguments, checked
from nft_ext.montecarlo.execution.cost import Cost, measure
from nft_ext.montecarlo.execution.pilot import pilot
from nft_ext.montecarlo.execution.preparation import check, prepared
from nft_ext.montecarlo.execution.protocols import Plan, plan
from nft_ext.montecarlo.execution.session import Session
from nft_ext.montecarlo.report.text import WIDTH, align
from nft_ext.montecarlo.statistics.intervals import CONFIDENCE, student_t_quantile
from nft_ext.montecarlo.statistics.slices import Slices
from nft_ext.montecarlo.statistics.stopping import PILOT_RUNS
from nft_ext.montecarlo.statistics.strata import least_exact

# A variance seen on the pilot's 24 chips, as factors on it: its 95 % interval by the chi-square distribution with 23
# degrees of freedom (23 / 38.08 and 23 / 11.69).
VARIANCE_RANGE = (0.604, 1.968)


@dataclass(frozen=True)
class CostEstimate:
    """What `estimate_cost` expects; `str(estimate)` is a short table.

    Attributes:
        protocol: "full" or "stratified".
        chips: expected number of chips.
        chips_range: its 95 % range where a target decides; else chips twice.
        images_a_chip: images that each chip sees.
        images: images of the set.
        chips_per_pass, batch_size: chips and images of a pass.
        ranks: processes that share the passes.
        cost: the costs that were measured.
        preparing: seconds before the first chip, once the data are read; probing and, for slices or a target, a pilot.
        slice_images: the number that repeats the slices ("auto" may choose otherwise at another moment); None: all
            images.
        reachable: whether max_runs are expected to reach the target.
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
        """Images of each forward of a pass."""
        full, rest = divmod(self.images_a_chip, self.batch_size)
        return [self.batch_size] * full + ([rest] if rest else [])

    def passes(self, chips: int | None = None) -> int:
        """Passes of `chips` chips; the last is padded."""
        return -(-(self.chips if chips is None else chips) // self.chips_per_pass)

    def parts(self) -> dict[str, float]:
        """Seconds of work on all ranks together: preparing, overhead, programming, images."""
        forwards, padded = self.passes() * len(self._batches()), self.passes() * self.chips_per_pass
        return {
            "preparing": self.preparing,
            "overhead of passes": forwards * self.cost.overhead,
            "programming": padded * len(self._batches()) * self.cost.chip,
            "images": padded * self.images_a_chip * self.cost.image,
        }

    def seconds_of(self, chips: int) -> float:
        """Wall time with `chips` chips, preparation included: ranks take passes one by one."""
        one = sum(self.cost.forward(self.chips_per_pass, images) for images in self._batches())
        return self.preparing + -(-self.passes(chips) // self.ranks) * one

    @property
    def seconds(self) -> float:
        """Expected wall time."""
        return self.seconds_of(self.chips)

    @property
    def seconds_range(self) -> tuple[float, float]:
        """The same over `chips_range`."""
        low, high = self.chips_range
        return self.seconds_of(low), self.seconds_of(high)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
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
            f"Estimate ({self.protocol}): {chips} x {self.images_a_chip:,} images, {self.chips_per_pass} chip(s) a pass",
            f"  a pass of S chips with b images each takes {_small(c.overhead)} + S x {_small(c.chip)} + S x b x {_small(c.image)} "
            f"(timed passes within {100 * c.misfit:.0f} %)",
            *("  " + line for line in align(rows)),
            f"  in all {when}" + (f" with {self.ranks} processes" if self.ranks > 1 else ""),
        ]
        if not self.reachable:
            lines += textwrap.wrap(
                "max_runs are not expected to reach the target; they are run all the same, and the report says so",
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
    metrics: Sequence[str] = ("accuracy", "ekl"),
    chips_per_pass: int | str = "auto",
    batch_size: int | str = "auto",
    precision: str = "float32",
) -> CostEstimate:
    """What `monte_carlo` with the same arguments will take on this machine.

    It times a few passes and evaluates no chip. The time is `preparing + passes * (overhead + S chip + S b image)`,
    summed over the batches of a pass; S is the chips of a pass and b the images of a batch. The three costs are fitted
    to timed passes near those of the evaluation. Where a target decides the number of chips R, a pilot of 24 chips
    tells the variance per chip v, and `R = v (t / target)^2`, at least the pilot of the stopping rule
    (docs/reference/monte_carlo.md).

    Args:
        model, data, device: as `monte_carlo` takes them.
        runs, seed, sigma, protocol, slice_images, target_ci, min_runs, max_runs: likewise.
        metrics, chips_per_pass, batch_size, precision: likewise.
        ranks: likewise. Under torchrun every rank makes this call; rank 0's measurements count, taken while all
            measure.
        resume, progress: taken and not used. All chips are counted, also those that a resume file has.
        cost: measured before, by an earlier estimate (`.cost`); None measures.

    Raises:
        TypeError, ValueError: as `monte_carlo`.
    """
    asked = checked(
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
        planned = Plan(None if most is None else Slices(asked.seed, len(ready.labels), most), made.pilot)
        found = None
        if asked.goal is not None:
            found = session.agree("estimate/pilot", made.pilot or pilot(evaluator, several).to_dict())
        per_pass = session.agree("estimate/chips", ready.chips_per_pass(planned))
        n = len(ready.labels) if planned.slices is None else planned.slices.size
        preparing = time.perf_counter() - ready.began
        if cost is None:
            session.meet()
            cost = measure(
                evaluator.pilot_pass, per_pass, min(n, evaluator.batch_size), several and asked.most_runs > 1
            )
        cost = Cost(**session.agree("estimate/cost", vars(cost)))
        preparing = session.agree("estimate/preparing", preparing)
        size = session.size
    expected, low, high, reachable = _chips(asked, found, n, len(ready.labels))
    return CostEstimate(
        protocol,
        expected,
        (low, high),
        n,
        len(ready.labels),
        per_pass,
        evaluator.batch_size,
        size,
        cost,
        preparing,
        most,
        reachable,
    )


def _chips(asked: Arguments, found: dict[str, Any] | None, n: int, images: int) -> tuple[int, int, int, bool]:
    """Chips expected, at least and at most (95 %), and whether the goal is expected within max_runs. found:
    `Pilot.to_dict()`.
    """
    if asked.goal is None:
        return asked.runs, asked.runs, asked.runs, True
    goal, slices = asked.goal, -(-images // n)
    start = max(goal.low, PILOT_RUNS)
    largest = goal.target / student_t_quantile(0.5 + CONFIDENCE / 2, start - 1)

    # The pilot saw the variance of a chip on its own images, B2 + seen; that is what is uncertain by the factor.
    seen, rest = ((1 / count - 1 / images) * found["X2"] for count in (found["images"], n))

    def needed(factor: float) -> int:
        between = max(0.0, factor * (found["B2"] + seen) - seen)
        # The stopping rule's steps (stopping.py), with the variances expected.
        exact = math.ceil((between + rest) / largest**2)
        if slices == 1 or 2 * slices <= start:
            return max(start, exact)
        cautious = math.ceil((between + rest + (1 / n - 1 / images) * found["P2"]) / largest**2)
        return max(start, cautious) if cautious <= least_exact(slices) else max(least_exact(slices), exact)

    within = [min(needed(factor), goal.high) for factor in (1.0, *VARIANCE_RANGE)]
    return *within, needed(1.0) <= goal.high


def _small(seconds: float) -> str:
    """A short time with its unit."""
    return f"{1e3 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def _time(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s" if seconds < 60 else duration(seconds)
