"""Collects the tallies of a range of chips, pass by pass, for protocols and stopping rules."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy import ndarray

from nft_ext._common.progress import Progress
from nft_ext.montecarlo.distributed.rows import Row, rows_of, tallies_of_rows
from nft_ext.montecarlo.execution.session import Session
from nft_ext.montecarlo.statistics.figure import Figure
from nft_ext.montecarlo.statistics.tallies import Tallies

# tallies_of(draws, done) -> Tallies, one row per draw; calls done(share) after each finished share of the pass
TalliesOf = Callable[[list[int], Callable[[float], None]], Tallies]


class Collector:
    """Runs chips in passes of equal size.

    Args:
        tallies_of: tallies of given chips, over the images that each chip sees.
        per_pass: chips per pass, >= 1.
        label, show: of the progress display (`Progress`).
        figure: what the progress display shows of the finished chips, or None.
        session: with a journal or other ranks, or None. Ranks share out whole passes, and a pass that was lost is run
            again with the same chips. So every rank and every call gives the same bits.

    Attributes:
        interrupted: True after a KeyboardInterrupt that ended a call before its last chip.
    """

    def __init__(
        self,
        tallies_of: TalliesOf,
        per_pass: int,
        label: str,
        show: bool | None,
        session: Session | None = None,
        figure: Figure | None = None,
    ):
        self.figure = figure
        self.tallies_of, self.per_pass, self.label, self.show = tallies_of, per_pass, label, show
        self.session = session if session is not None and session.keeps else None
        self.interrupted = False

    def run(self, first: int, last: int) -> Tallies:
        """Tallies of the chips first .. last - 1, in order.

        After an interrupt: those of the finished chips from `first` on, possibly none. Later calls return none.
        """
        if self.interrupted:
            return Tallies.concatenate([])
        if self.session is None:
            return self._run(first, last)
        return self._run_in_session(self.session, first, last)

    def _run(self, first: int, last: int) -> Tallies:
        finished: list[Tallies] = []
        done = first
        try:
            with Progress(last - first, self.label, "chips", enabled=self.show) as progress:
                shown = _Shown(progress, self.figure)
                while done < last:
                    kept = min(self.per_pass, last - done)
                    finished.append(self._pass(done, kept, lambda share, n=kept: progress.update(n * share)))
                    done += kept
                    shown.result(finished[-1])
        except KeyboardInterrupt:
            self.interrupted = done < last
        return Tallies.concatenate(finished)

    def _pass(self, start: int, kept: int, done: Callable[[float], None]) -> Tallies:
        # Always per_pass chips, so that shapes never change. The surplus chips are dropped.
        return self.tallies_of(list(range(start, start + self.per_pass)), done).chips(kept)

    def _run_in_session(self, session: Session, first: int, last: int) -> Tallies:
        kept = {start: min(self.per_pass, last - start) for start in range(first, last, self.per_pass)}
        todo = [start for start, n in kept.items() if not all(map(session.known, range(start, start + n)))]

        def compute(start: int) -> list[Row]:
            draws = range(start, start + kept[start])
            return rows_of(draws, self._pass(start, len(draws), lambda share: None), 0.0)

        with Progress(last - first, self.label, "chips", enabled=self.show) as progress:
            shown = _Shown(progress, self.figure)
            progress.update(sum(map(session.known, range(first, last))))

            def arrived(rows: list[Row]) -> None:
                progress.update(len(rows))
                shown.result(tallies_of_rows(rows))

            rows, self.interrupted = session.rows(first, last, todo, compute, arrived)
        return tallies_of_rows(rows)


class _Shown:
    """Shows the first metric of all finished chips in the progress display."""

    def __init__(self, progress: Progress, figure: Figure | None):
        self.progress, self.figure = progress, figure
        self._sums: ndarray = np.zeros(())

    def result(self, tallies: Tallies) -> None:
        if self.figure is None or not len(tallies):
            return
        self._sums = self._sums + self.figure.sums(tallies).sum(axis=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            value = float(self.figure.value(self._sums))
        if math.isfinite(value):
            shown = f"{100 * value:.2f} %" if self.figure.share else f"{value:.4g}"
            self.progress.update(0, note=f"{self.figure.name} {shown}")
