"""Stage `tune`: up to how many columns a chip the fused product wins; the stages after it run with the bounds found."""

from __future__ import annotations

from bench.gpu.child import Task
from nft_ext import choice, tune


def in_force() -> choice.Bounds:
    """Puts the bounds found in force, for which operators called directly do not look; gives them, or the default's."""
    return choice.apply(0) or choice.DEFAULT


def run(task: Task) -> None:
    bounds, records = tune.tune(0, lambda line: print(line, flush=True))
    task.save({"columns": bounds, "default": choice.DEFAULT, "points": records, "file": str(tune.keep(0, bounds, records)),
               "summary": choice.described()})
