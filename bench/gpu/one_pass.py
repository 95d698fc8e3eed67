"""Stage `one_pass`: one-pass products against library products of weights that are programmed first.

Each kind is timed in its own process (bench/gpu/one_pass_times.py) with its value of NFT_EXT_ONE_PASS. The bounds
justify the constants of csrc/cuda/torch/one_pass_switch.h; nothing reads them.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.gpu import stages
from bench.gpu.child import Task, Wrong

ROOT = Path(__file__).resolve().parents[2]
WAYS = {"always": "one_pass_s", "never": "programmed_s"}

Row = Mapping[str, Any]


def paired(always: Sequence[Row], never: Sequence[Row]) -> list[dict[str, Any]]:
    """The points with both times: "one_pass_s" and "programmed_s" in place of "seconds"."""

    def place(point: Row) -> tuple:
        return point["direction"], point["dtype"], tuple(point["shape"]), point["columns"]

    other, found = {place(point): point["seconds"] for point in never}, []
    for point in always:
        if place(point) in other:
            rest = {k: v for k, v in point.items() if k != "seconds"}
            found.append(rest | {WAYS["always"]: point["seconds"], WAYS["never"]: other[place(point)]})
    return found


def best_bound(points: Sequence[Row]) -> int:
    """The bound on columns per chip for one-pass products that minimizes the geometric mean of all times.

    Of several equally good bounds, the smallest. 0: never.
    """

    def cost(bound: int) -> float:
        return sum(math.log(p[WAYS["always" if p["columns"] <= bound else "never"]]) for p in points)

    return min((0, *sorted({p["columns"] for p in points})), key=cost)


def bounds(points: Sequence[Row]) -> dict[str, dict[str, int]]:
    """[direction][type] -> columns per chip."""
    found: dict[str, dict[str, int]] = {}
    for p in points:
        same = [q for q in points if (q["direction"], q["dtype"]) == (p["direction"], p["dtype"])]
        found.setdefault(p["direction"], {})[p["dtype"]] = best_bound(same)
    return found


def summary(found: Mapping[str, Mapping[str, int]]) -> str:
    return "; ".join(
        f"{direction.replace('_', ' ')}: one pass wins to "
        + ", ".join(f"{columns} columns in {dtype}" for dtype, columns in types.items())
        for direction, types in found.items()
    )


def times(rule: str, task: Task, seconds: float) -> list[dict[str, Any]]:
    """The times that a child process measures with this rule.

    Raises:
        Wrong: it saved none.
    """
    saved, known = (task.out.with_suffix(f".{rule}.{what}.json") for what in ("found", "known"))
    stages.write_json(known, {})
    command = [
        sys.executable,
        "-m",
        "bench.gpu.child",
        "one_pass_times",
        "--out",
        str(saved),
        "--known",
        str(known),
        "--seconds",
        f"{seconds:.0f}",
    ]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"NFT_EXT_ONE_PASS": rule})
    found = stages.read_json(saved)
    if found is None:
        raise Wrong(
            f"NFT_EXT_ONE_PASS={rule}: the times' process ended with status {done.returncode} and saved nothing"
        )
    return found["points"]


def run(task: Task) -> None:
    always = times("always", task, task.left() / 2)
    points = paired(always, times("never", task, task.left()))
    found = bounds(points)
    task.save({"bounds": found, "points": points, "summary": summary(found)})
