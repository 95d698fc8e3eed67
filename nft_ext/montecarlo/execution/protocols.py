"""Which images a chip sees, and how many chips: the plan of an evaluation, and its execution."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from nft_ext.montecarlo.execution.arguments import Arguments
from nft_ext.montecarlo.execution.chip_evaluator import ChipEvaluator
from nft_ext.montecarlo.execution.collect import Collector, TalliesOf
from nft_ext.montecarlo.execution.pilot import pilot
from nft_ext.montecarlo.statistics.estimates import accuracy_estimate
from nft_ext.montecarlo.statistics.slices import Slices
from nft_ext.montecarlo.statistics.stopping import Precision, until
from nft_ext.montecarlo.statistics.strata import most_slices
from nft_ext.montecarlo.statistics.tallies import Tallies


@dataclass(frozen=True)
class Plan:
    """slices: what each chip sees; None: all images. pilot: what decided their size (`Pilot.to_dict`), if anything did."""

    slices: Slices | None
    pilot: dict[str, Any] | None = None

    @property
    def count(self) -> int:
        """Slices of a tiling; 1 where every chip sees all images."""
        return 1 if self.slices is None else self.slices.count

    def tallies_of(self, evaluator: ChipEvaluator) -> TalliesOf:
        """What the collector calls for a pass."""
        return evaluator.tallies if self.slices is None else partial(evaluator.slice_tallies, self.slices)


def plan(asked: Arguments, evaluator: ChipEvaluator, several: bool) -> Plan:
    """The protocol's plan. several: whether chips may share a pass of this model.

    "auto" takes n* from a pilot; where `runs` is given, at least as many images as leave it the exact variance
    (strata.py).
    """
    images = len(evaluator.labels)
    if asked.protocol == "full":
        return Plan(None)
    if asked.slice_images != "auto":
        return Plan(Slices(asked.seed, images, asked.slice_images))
    if images < 4:
        return Plan(Slices(asked.seed, images, images))
    found = pilot(evaluator, several)
    least = -(-images // most_slices(asked.runs)) if asked.goal is None else 2
    return Plan(Slices(asked.seed, images, max(found.best, least)), found.to_dict())


def execute(asked: Arguments, collector: Collector, count: int) -> tuple[Tallies, Precision | None]:
    """All chips asked for (or the finished ones, if interrupted), and the precision that a target fixed.

    count: slices of a tiling. Raises KeyboardInterrupt if interrupted below two chips.
    """
    parts: list[Tallies] = []

    def more(first: int, last: int) -> None:
        parts.append(collector.run(first, last))
        if collector.interrupted:
            raise KeyboardInterrupt

    precision = None
    try:
        if asked.goal is None:
            more(0, asked.runs)
        else:
            precision = until(asked.goal, count, more, lambda: accuracy_estimate(Tallies.concatenate(parts), count))
    except KeyboardInterrupt:
        if not collector.interrupted or sum(map(len, parts)) < 2:
            raise
    return Tallies.concatenate(parts), precision
