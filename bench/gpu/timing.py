"""Timing on CUDA: interleaved rounds, CUDA events, medians, and comparisons.

Each variant is built, then checked, then timed. Variants of a case alternate, in another order in each round. Times
include the host's gaps between launches, because a user waits for them. A graph variant replays one CUDA graph per
call and has no gaps.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from bench.gpu.child import Task
from bench.gpu.floors import Ceilings, Floor, floor, sampling_instructions
from bench.harness import baselines
from bench.harness.case import DRAWS, Variant
from bench.harness.measure import Row, Timing, fastest
from bench.harness.table import row_facts

SAMPLE_SECONDS = 0.01  # a timing holds as many calls as fill this
MOST_CALLS = 100
ROUNDS, FEWEST_ROUNDS = 9, 5
MODES = ("eager", "graph", "programmed graph", "compile", "compiled graph")
# Pairs to compare. For Gaussian devices, one normal per weight and one per device give the same distribution.
COMPARED = (("one", "one"), ("one", "device"), ("device", "device"), ("one", "none"))


def graphed(run: Callable[[], Any]) -> Callable[[], Any]:
    """`run` as one CUDA graph. The next replay overwrites the results."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run()

    def replay() -> Any:
        graph.replay()
        return result

    replay.captured = run  # type: ignore[attr-defined]  (keeps what the graph reads where it is)
    return replay


@contextlib.contextmanager
def exact_float32() -> Iterator[None]:
    """Turns TF32 off inside, for checks. Timing uses torch's defaults for both sides: cuDNN may use TF32."""
    backends = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [b.allow_tf32 for b in backends]
    for b in backends:
        b.allow_tf32 = False
    try:
        yield
    finally:
        for b, allowed in zip(backends, before):
            b.allow_tf32 = allowed


def timed(run: Callable[[], Any], calls: int) -> float:
    """Seconds per call, between two events on the current stream."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(calls):
        run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e-3 / calls


def interleaved(runs: Sequence[Callable[[], Any]], left: Callable[[], float], rounds: int = ROUNDS) -> list[Timing]:
    """Times `runs` alternately, until left() seconds are over but for at least FEWEST_ROUNDS rounds."""
    for run in runs:
        run()
    torch.cuda.synchronize()
    expected = [max(timed(run, 2), 1e-6) for run in runs]
    calls = [max(1, min(MOST_CALLS, round(SAMPLE_SECONDS / s))) for s in expected]
    seconds: list[list[float]] = [[] for _ in runs]
    order = list(range(len(runs)))
    shuffle = random.Random(0).shuffle
    for done in range(rounds):
        if done >= FEWEST_ROUNDS and left() <= 0:
            break
        shuffle(order)
        for i in order:
            seconds[i].append(timed(runs[i], calls[i]))
    return [Timing(s, c, 0.0) for s, c in zip(seconds, calls)]


def floor_of(variant: Variant, ceilings: Ceilings) -> Floor:
    drawn = baselines.NORMALS[variant.draws]
    instructions = sampling_instructions(variant.work.normals // drawn, variant.work.normals) if drawn else 0.0
    return floor(
        ceilings,
        bytes_=variant.work.bytes,
        flops=variant.work.flops,
        precision=variant.precision,
        instructions=instructions,
    )


def measure_case(
    name: str,
    shape: str,
    variants: Sequence[Variant],
    ceilings: Ceilings,
    task: Task,
    early: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Builds, checks and times the variants; returns JSON types.

    A variant that is wrong or fails gets no time. A variant without time left is named as unmeasured. Compiling may
    outlast the stage, so `early` gets the case before the first variant is compiled.
    """
    rows: list[Row] = []
    runs: list[Callable[[], Any]] = []
    unmeasured: list[str] = []

    def case(rounds: int, rest: Sequence[Variant] = ()) -> dict[str, Any]:
        timings = iter(interleaved(runs, task.left, rounds) if runs else [])
        for row in rows:
            if row.failure is None:
                row.timing = next(timings)
        return {
            "name": f"{name}: {shape}",
            "case": name,
            "rows": [row_record(row, ceilings) for row in rows],
            "compared": compared(rows, ceilings),
            "unmeasured": [*unmeasured, *(v.name for v in rest)],
            "failures": [f"{r.variant.name}: {r.failure}" for r in rows if r.failure],
        }

    for number, variant in enumerate(variants):
        reserve = 0.3 * (len(runs) + 1)  # for the rounds
        if task.left() < reserve:
            unmeasured.append(variant.name)
            continue
        if early is not None and "compile" in variant.mode:
            early(case(FEWEST_ROUNDS, variants[number:]))
            early = None
        try:
            ready = variant.make()
            failure = ready.check()
            torch.cuda.synchronize()
        except Exception as error:  # one failing variant must not stop the others
            failure = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        rows.append(Row(variant, failure))
        if failure is None:
            runs.append(ready.run)
    return case(ROUNDS)


def row_record(row: Row, ceilings: Ceilings) -> dict[str, Any]:
    v, t, record = row.variant, row.timing, row_facts(row)
    if t is None:
        return record
    at_least = floor_of(v, ceilings)
    return record | {
        "rounds": len(t.seconds),
        "bytes": v.work.bytes,
        "flops": v.work.flops,
        "normals": v.work.normals,
        "floor_s": at_least.seconds,
        "bound_by": at_least.bound_by,
        "times_the_floor": t.median / at_least.seconds,
    }


def compared(rows: Sequence[Row], ceilings: Ceilings) -> list[dict[str, Any]]:
    """Our fastest against the fastest PyTorch of the same precision, over all modes, right results only.

    Variants that recompute everything in each call (cached=False) are compared only with each other.
    """
    found = []
    for precision in ("bf16", "fp32"):
        for cached in (True, False):
            for ours_draws, their_draws in COMPARED:
                same = {"precision": precision, "mode": MODES}
                # Plain layers have nothing to cache: they are compared with both.
                theirs = (
                    same
                    | {"family": "torch", "draws": their_draws}
                    | ({} if their_draws == "none" else {"cached": cached})
                )
                ours = fastest(rows, same | {"family": "nft", "draws": ours_draws, "cached": cached})
                against = fastest(rows, theirs)
                if ours is None or against is None or ours.timing is None or against.timing is None:
                    continue
                at_least = floor_of(ours.variant, ceilings)
                found.append(
                    {
                        "what": f"{precision} {DRAWS[ours_draws]} against {DRAWS[their_draws]}"
                        + ("" if cached else ", anew"),
                        "precision": precision,
                        "cached": cached,
                        "ours_draws": ours_draws,
                        "against_draws": their_draws,
                        "ours": _way(ours.variant),
                        "ours_s": ours.timing.median,
                        "against": _way(against.variant),
                        "against_s": against.timing.median,
                        "ratio": against.timing.median / ours.timing.median,
                        "floor_s": at_least.seconds,
                        "bound_by": at_least.bound_by,
                    }
                )
    return found


def _way(variant: Variant) -> str:
    return variant.mode + (f", {variant.note}" if variant.note else "")
