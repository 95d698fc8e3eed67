"""Stage `racecheck`, see bench/gpu/sanitize.py."""

from __future__ import annotations

from bench.gpu.child import Task
from bench.gpu.sanitize import run_tool


def run(task: Task) -> None:
    run_tool("racecheck", task)
