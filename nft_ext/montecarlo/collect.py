"""Collects the sums of a range of chips, pass by pass: all that protocols and stopping rules ask for."""

from __future__ import annotations

from typing import Callable

from nft_ext.montecarlo.tallies import Tallies
from nft_ext.progress import Progress

# tallies_of(draws, done) -> Tallies, one row a draw; done(share) is told of each share of the pass that is over
TalliesOf = Callable[[list[int], Callable[[float], None]], Tallies]


class Collector:
    """Runs chips in passes of always the same size.

    tallies_of: the sums of the chips `draws`, over whichever images each of them sees.
    per_pass: chips a pass, >= 1. label, show: of the progress display (`Progress`).
    interrupted: True once a KeyboardInterrupt has ended a call before its last chip.
    """

    def __init__(self, tallies_of: TalliesOf, per_pass: int, label: str, show: bool | None):
        self.tallies_of, self.per_pass, self.label, self.show = tallies_of, per_pass, label, show
        self.interrupted = False

    def run(self, first: int, last: int) -> Tallies:
        """Sums of the chips `first` .. `last` - 1, in order.

        If interrupted: of the finished chips from `first` on, possibly none; and none in later calls.
        """
        finished: list[Tallies] = []
        if self.interrupted:
            return Tallies.concatenate(finished)
        done, right, seen = first, 0.0, 0.0
        try:
            with Progress(last - first, self.label, "chips", enabled=self.show) as progress:
                while done < last:
                    kept = min(self.per_pass, last - done)
                    # Always per_pass chips, so that shapes never change; the surplus is dropped.
                    draws = list(range(done, done + self.per_pass))
                    tallies = self.tallies_of(draws, lambda share: progress.update(kept * share)).chips(kept)
                    finished.append(tallies)
                    done += kept
                    right += float(tallies.correct.sum())
                    seen += float(tallies.images.sum())
                    progress.update(0, note=f"accuracy {100 * right / seen:.2f} %")
        except KeyboardInterrupt:
            self.interrupted = done < last
        return Tallies.concatenate(finished)
