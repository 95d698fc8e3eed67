"""Seconds and ratios out of the files of `bench/run.py` and `bench/gpu_check.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

RESULTS = "bench/results/"
MILLI, MICRO = 1e3, 1e6


def fastest(variants: list[dict[str, Any]], family: str, draws: str, **facts: Any) -> float:
    """The least median, in seconds, of the right variants of `family`.

    Left out, unless the name or `facts` ask for them: weights that are new at every call, other fixed ways of drawing.
    """
    named = facts.pop("named", None)
    found = [
        row["median_s"]
        for row in variants
        if (row["right"] and row["family"] == family and row["draws"] == draws)
        and all(row[key] == value for key, value in facts.items())
        and (row["variant"].endswith(named) if named else "weights new" not in row["variant"])
        and row["mode"] != "threads"
    ]
    return min(found)


def versus(ours: float, theirs: float, scale: float) -> list[float]:
    return [ours * scale, theirs * scale, theirs / ours]


def variants(file: dict[str, Any], case: str) -> list[dict[str, Any]]:
    (found,) = [entry for entry in file["cases"] if entry["case"] == case]
    return found["variants"]


def cpu(case: str, ours: str = "one normal", theirs: str = "one normal", **facts: Any) -> Callable[[Any], list[float]]:
    """Our and PyTorch's milliseconds and their ratio, for one case of `bench/run.py`.

    `named` chooses among our variants only, all other facts among both.
    """

    def figures(file: Any) -> list[float]:
        rows = variants(file, case)
        both = {key: value for key, value in facts.items() if key != "named"}
        return versus(fastest(rows, "nft", ours, **facts), fastest(rows, "torch", theirs, **both), MILLI)

    return figures


def gpu_case(file: Any, stage: str, start: str) -> dict[str, Any]:
    (found,) = [entry for entry in file["stages"][stage]["found"]["cases"] if entry["name"].startswith(start)]
    return found


def gpu(stage: str, start: str, what: str, scale: float = MICRO) -> Callable[[Any], list[float]]:
    """Both times and the ratio of one comparison that a stage of `bench/gpu_check.py` made."""

    def figures(file: Any) -> list[float]:
        (found,) = [row for row in gpu_case(file, stage, start)["compared"] if row["what"] == what]
        return versus(found["ours_s"], found["against_s"], scale)

    return figures


def gpu_mode(stage: str, start: str, scale: float, **facts: Any) -> Callable[[Any], list[float]]:
    """Both sides' fastest variant with `facts`, such as mode="eager"."""

    def figures(file: Any) -> list[float]:
        rows = gpu_case(file, stage, start)["rows"]
        ours, theirs = (fastest(rows, family, "one normal", **facts) for family in ("nft", "torch"))
        return versus(ours, theirs, scale)

    return figures
