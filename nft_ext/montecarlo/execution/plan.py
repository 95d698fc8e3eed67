"""The plan of an evaluation: which chips see which images."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from nft_ext.montecarlo.execution.arguments import Arguments
from nft_ext.montecarlo.execution.chip_evaluator import ChipEvaluator
from nft_ext.montecarlo.execution.collector import Collector, TalliesOf
from nft_ext.montecarlo.execution.pilot import pilot
from nft_ext.montecarlo.statistics.figure import Figure
from nft_ext.montecarlo.statistics.precision import Precision
from nft_ext.montecarlo.statistics.slice_estimate import most_slices
from nft_ext.montecarlo.statistics.slices import Slices
from nft_ext.montecarlo.statistics.stopping import until
from nft_ext.montecarlo.statistics.tallies import Tallies


@dataclass(frozen=True)
class Plan:
    """Which chips see which images.

    Attributes:
        slices: the slices; None: every chip sees all images.
        pilot: `Pilot.to_dict` if a pilot decided the size of the slices, else None.
    """

    slices: Slices | None
    pilot: dict[str, Any] | None = None

    @property
    def count(self) -> int:
        """Slices per tiling; 1 if every chip sees all images."""
        return 1 if self.slices is None else self.slices.count

    def tallies_of(self, evaluator: ChipEvaluator) -> TalliesOf:
        """The function that evaluates a pass, for `Collector`."""
        return evaluator.tallies if self.slices is None else partial(evaluator.slice_tallies, self.slices)


def plan(asked: Arguments, evaluator: ChipEvaluator, several: bool) -> Plan:
    """Makes the plan of the protocol asked for.

    slice_images="auto" takes n* from a pilot. For a given number of runs, slices have at least as many images as the
    exact variance needs (statistics/slice_estimate.py).

    Args:
        asked: the checked arguments.
        evaluator: the network with its data.
        several: whether chips may share a pass of this model.
    """
    images = len(evaluator.examples)
    if asked.protocol == "full":
        return Plan(None)
    if isinstance(asked.slice_images, int):
        return Plan(Slices(asked.seed, images, asked.slice_images))
    if images < 4:
        return Plan(Slices(asked.seed, images, images))
    found = pilot(evaluator, several)
    least = -(-images // most_slices(asked.runs)) if asked.goal is None else 2
    return Plan(Slices(asked.seed, images, max(found.best, least)), found.to_dict())


def execute(asked: Arguments, collector: Collector, planned: Plan, figure: Figure) -> tuple[Tallies, Precision | None]:
    """Collects all chips asked for.

    Args:
        asked: the checked arguments.
        collector: collects chips.
        planned: which chips see which images.
        figure: what a target is about.

    Returns:
        The tallies of all chips, or of the finished ones after an interrupt; and the precision if a target fixed it.

    Raises:
        KeyboardInterrupt: an interrupt with fewer than two finished chips.
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
            count = planned.count
            precision = until(
                asked.goal,
                count,
                more,
                lambda: figure.estimate(Tallies.concatenate(parts), count, whole=count == 1),
                figure.share,
            )
    except KeyboardInterrupt:
        if not collector.interrupted or sum(map(len, parts)) < 2:
            raise
    return Tallies.concatenate(parts), precision
