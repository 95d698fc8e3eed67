"""Stage `int8`: the fused forward of 8-bit numbers beside bfloat16's, the layers and sizes of stage `layers`, one normal a weight.

A graph replays each, so that launches cost no host time: int8 has two more of them, which read x in float32 and write it in 8 bits.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from bench.harness.case import Variant
from bench.gpu import layers, timing
from bench.gpu.child import Task
from bench.gpu.floors import Ceilings
from bench.gpu.tune import in_force


def variants(point: layers.Point) -> list[Variant]:
    """8-bit convolutions in both memory formats, of which the contiguous one may be turned on its way to bytes."""

    def variant(precision: str, channels_last: bool | None = None, note: str = "") -> Variant:
        make = functools.partial(layers.ours, point, "one", precision, "graph", channels_last)
        return Variant("nft", "one", make, point.work("one", precision), precision, "graph", True, note)

    return [variant("int8"), *([] if point.shape.is_linear else [variant("int8", True, "channels_last")]), variant("bf16")]


def beside(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """int8 against bfloat16, where both are right: as report.case_lines shows it."""
    right = [row for row in rows if row["right"]]
    against = next((row for row in right if row["precision"] == "bf16"), None)
    return [] if against is None else [_compared(ours, against) for ours in right if ours["precision"] == "int8"]


def _compared(ours: Mapping[str, Any], against: Mapping[str, Any]) -> dict[str, Any]:
    return {"what": "int8 against bf16, ours both", "ours": ours["variant"], "ours_s": ours["median_s"], "against": against["variant"],
            "against_s": against["median_s"], "ratio": against["median_s"] / ours["median_s"], "floor_s": ours["floor_s"],
            "bound_by": ours["bound_by"]}


@torch.no_grad()
def run(task: Task) -> None:
    measured, columns = Ceilings.of(task.found_by("ceilings")), in_force()
    # The rate of 8-bit products is not measured: bytes and instructions alone make a floor below the true one.
    ceilings = dataclasses.replace(measured, flops_per_second=measured.flops_per_second | {"int8": math.inf})
    cases = []
    for point in layers.points():
        products = point.work("none", "bf16").flops / point.chips / 2e6
        case = timing.measure_case(point.name, f"{point.chips} x 2 x {products:.1f} M FLOP", variants(point), ceilings, task)
        cases.append(case | {"rows_a_chip": point.rows, "compared": beside(case["rows"])})
        task.save({"cases": cases, "columns": columns, "summary": f"{len(cases)} layers and sizes"})
