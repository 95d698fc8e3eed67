"""Timing in interleaved rounds, and ratios of times."""

from __future__ import annotations

import dataclasses
import gc
import random
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from bench.harness.case import Case, Ready, Target, Variant

SAMPLE_SECONDS = 0.05  # least duration of a timing: threads take a while to wake
MOST_CALLS = 1000
WAKE_SECONDS = 0.1  # shorter calls follow an untimed one: a single-threaded neighbour leaves the other core asleep
MUCH_CONTENTION = 0.1  # above this share another program was running
CONTENDED = "not comparable: a thread waited for a core in {:.0f} % of the time; stop other programs"


@dataclasses.dataclass
class Timing:
    """Seconds per call of one variant, one entry per round."""

    seconds: list[float]
    calls: int  # calls per timing
    page_faults: float  # per call

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def quantile(self, q: float) -> float:
        """The nearest entry of the sorted times."""
        ordered = sorted(self.seconds)
        return ordered[round(q * (len(ordered) - 1))]


@dataclasses.dataclass
class Row:
    """One variant's outcome. `failure` is the error of its check; then there are no times."""

    variant: Variant
    failure: str | None
    timing: Timing | None = None


def _page_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def _timed(run: Callable[[], Any], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - start) / calls


def interleaved(
    runs: Sequence[Callable[[], Any]], rounds: int, tick: Callable[[], None] = lambda: None
) -> list[Timing]:
    """Times `runs` alternately, in another order in each round, so that disturbances affect all of them.

    tick is called after each round.
    """
    for run in runs:
        run()
    # Calls of about a second need no second warm-up.
    expected = [max(_timed(run, 1), 1e-7) for run in runs]
    calls = [max(1, min(MOST_CALLS, round(SAMPLE_SECONDS / s))) for s in expected]
    seconds: list[list[float]] = [[] for _ in runs]
    faults = [0] * len(runs)
    order = list(range(len(runs)))
    shuffle = random.Random(0).shuffle
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            shuffle(order)
            for i in order:
                if expected[i] < WAKE_SECONDS:
                    runs[i]()
                before = _page_faults()
                seconds[i].append(_timed(runs[i], calls[i]))
                faults[i] += _page_faults() - before
            tick()
    finally:
        gc.enable()
    return [Timing(s, c, f / (c * rounds)) for s, c, f in zip(seconds, calls, faults)]


class Contention:
    """Context manager: the share of time in which a runnable thread waited for a core (Linux; else None)."""

    share: float | None = None

    def __enter__(self) -> Contention:
        self._start, self._waited = time.perf_counter(), self._seconds()
        return self

    def __exit__(self, *_: object) -> None:
        if self._waited is not None:
            self.share = (self._seconds() - self._waited) / (time.perf_counter() - self._start)

    @staticmethod
    def _seconds() -> float | None:
        try:
            with open("/proc/pressure/cpu") as file:
                return int(file.readline().rsplit("total=", 1)[1]) * 1e-6
        except (OSError, IndexError, ValueError):
            return None


def warning(contention: float | None) -> str | None:
    """The warning for times with this contention; None if they are good."""
    return CONTENDED.format(100 * contention) if contention is not None and contention > MUCH_CONTENTION else None


class Measured(NamedTuple):
    rows: list[Row]
    contention: float | None  # see Contention


def measure(variants: Sequence[Variant], rounds: int, tick: Callable[[str], None] = lambda note: None) -> Measured:
    """Builds, checks and times variants. A variant that is wrong or fails gets no times.

    tick(note) is called before each variant is built and after each round.
    """
    rows: list[Row] = []
    runs: list[Callable[[], Any]] = []
    for variant in variants:
        tick(f"checking {variant.name}")
        try:
            ready: Ready = variant.make()
            failure = ready.check()
        except Exception as error:  # one failing variant must not stop the others
            failure = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        rows.append(Row(variant, failure))
        if failure is None:
            runs.append(ready.run)
    with Contention() as contention:
        timings = iter(interleaved(runs, rounds, lambda: tick("timing")) if runs else [])
    for row in rows:
        if row.failure is None:
            row.timing = next(timings)
    return Measured(rows, contention.share)


# ---- ratios


@dataclasses.dataclass
class Ratio:
    """The ratio of the times of `against` and `ours`."""

    of_medians: float
    of_rounds: float  # median of the per-round ratios
    against: str


def ratio(ours: Row, against: Row) -> Ratio | None:
    """The ratio, or None unless both results are right."""
    if ours.timing is None or against.timing is None or ours.failure or against.failure:
        return None
    rounds = [b / a for a, b in zip(ours.timing.seconds, against.timing.seconds)]
    return Ratio(against.timing.median / ours.timing.median, statistics.median(rounds), against.variant.name)


def fastest(rows: Sequence[Row], wanted: dict[str, Any]) -> Row | None:
    """The fastest right row that matches."""
    right = [r for r in rows if r.timing is not None and r.failure is None and r.variant.matches(wanted)]
    return min(right, key=lambda r: r.timing.median, default=None)


def best_torch(case: Case, rows: Sequence[Row], row: Row, draws: str) -> Row | None:
    """The PyTorch variant to compare `row` with: the fastest with these draws and equal `case.alike`."""
    wanted = {"family": "torch", "draws": draws, "mode": ("eager", "compile")}
    return fastest(rows, wanted | {name: getattr(row.variant, name) for name in case.alike})


@dataclasses.dataclass
class Verdict:
    """A target and its result. reached is None if unknown, for example because another program was running."""

    target: Target
    reached: bool | None
    ratio: Ratio | None
    ours: str
    why: str = ""


def judge(target: Target, measured: Measured) -> Verdict:
    """Judges a target. There is no ratio without right results on both sides."""
    rows = measured.rows
    wrong = [r for r in rows if r.failure and r.variant.matches(target.ours)]
    ours, against = fastest(rows, target.ours), fastest(rows, target.against)
    if wrong:
        return Verdict(
            target, None, None, wrong[0].variant.name, f"{wrong[0].variant.name} failed its check: {wrong[0].failure}"
        )
    if ours is None or against is None:
        return Verdict(target, None, None, "", "no right result to compare")
    found = ratio(ours, against)
    if (why := warning(measured.contention)) is not None:
        return Verdict(target, None, found, ours.variant.name, why)
    return Verdict(target, found.of_medians >= target.at_least, found, ours.variant.name)
