"""The journal and the ranks of one evaluation, if it has any."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from nft_ext._common.checks import file_path
from nft_ext._common.processes import own_gpu
from nft_ext.montecarlo.distributed.journal import Journal
from nft_ext.montecarlo.distributed.ranks import RanksError, team_of
from nft_ext.montecarlo.distributed.rows import Row
from nft_ext.montecarlo.distributed.work_queue import Compute, deal, share
from nft_ext.montecarlo.execution.data_reader import read_examples
from nft_ext.montecarlo.execution.node_data import NodeData
from nft_ext.montecarlo.tasks.examples import Examples


class Session:
    """A context around one evaluation.

    Args:
        resume: path of the journal, or None.
        ranks: as `monte_carlo` takes it.
    """

    def __init__(self, resume: str | os.PathLike | None, ranks: bool | None):
        if resume is not None:
            file_path("resume", resume)
        self._resume, self._team = resume, team_of(ranks)
        self._journal: Journal | None = None
        self._data: NodeData | None = None
        self._calls = 0
        self._rows: dict[int, Row] = {}

    @property
    def keeps(self) -> bool:
        """Whether finished chips go to a journal or between ranks."""
        return self._resume is not None or self._team is not None

    @property
    def main(self) -> bool:
        """Whether this process prints and writes."""
        return self._team is None or self._team.main

    @property
    def size(self) -> int:
        """Number of processes that share the passes."""
        return 1 if self._team is None else self._team.size

    def __enter__(self) -> Session:
        if self._team is not None:
            self._team.begin()
        return self

    def __exit__(self, kind, error, traceback) -> None:
        if self._data is not None:
            self._data.close()
        if self._journal is not None:
            self._journal.close()
        if self._team is None:
            return
        try:
            if kind is not None and not self._team.has("stop"):
                self._team.stop(str(error) or kind.__name__)
            self._team.end()
        except RanksError:
            if kind is None:
                raise

    def read(self, data: Any) -> Examples:
        """`read_examples(data)`; pairs of inputs and labels are read once per machine."""
        if self._team is None:
            return read_examples(data)
        self._data = NodeData(self._team, data)
        return self._data.examples

    def meet(self) -> None:
        """Waits for all ranks."""
        if self._team is not None:
            self._team.check_same({})

    def device(self, device: torch.device | str | None) -> torch.device | str | None:
        """`device`; for "cuda", this rank's own GPU."""
        if self._team is None or str(device) != "cuda" or not torch.cuda.is_available():
            return device
        return own_gpu(self._team.rank)

    def open(
        self, header: dict[str, dict[str, Any]], asked: dict[str, Any], settle: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """Checks that ranks and journal have the same configuration, and opens the journal.

        Args:
            header: `configuration(...)`.
            asked: further arguments that must be the same on all ranks.
            settle: decides values once for all chips, for example the size of slices.

        Returns:
            The journal's settled values, or those of settle() on rank 0.

        Raises:
            FileNotFoundError, OSError, ValueError: as `Journal` and `Team.check_same`.
        """
        if self._team is not None:
            same = {n: header["noted"][n] for n in ("nft_ext", "batch_size", "chips_per_pass") if n in header["noted"]}
            self._team.check_same(header["fixed"] | same | asked)
            if self._data is not None:
                self._data.close()
        settled = None
        if self.main and self._resume is not None:
            self._journal = Journal(self._resume, header, settle)
            self._rows, settled = self._journal.rows, self._journal.settled
        elif self.main:
            settled = settle()
        return self.agree("settled", settled)

    def agree(self, name: str, value: Any) -> Any:
        """Returns rank 0's `value` on every rank. It must be valid JSON."""
        return value if self._team is None else self._team.agree(name, value)

    @property
    def notes(self) -> list[str]:
        """Notes on the journal, for the report."""
        return self._journal.notes if self._journal is not None else []

    @property
    def seconds_before(self) -> float:
        """Seconds that the journal's chips took in earlier calls."""
        return self._journal.seconds if self._journal is not None else 0.0

    # ---- passes

    def known(self, draw: int) -> bool:
        """Whether the chip is in the journal or was evaluated by an earlier call."""
        return draw in self._rows

    def first_tallies(self) -> list[str] | None:
        """The sorted names of the tallies of a chip in the journal; None without one."""
        return next((sorted(row.tallies) for row in self._rows.values()), None)

    def rows(
        self, first: int, last: int, starts: list[int], compute: Compute, arrived: Callable[[list[Row]], None]
    ) -> tuple[list[Row], bool]:
        """Evaluates chips and returns their rows.

        Args:
            first, last: the chips first .. last - 1.
            starts: first chip of every pass to run.
            compute: compute(start) runs one pass.
            arrived: called with new rows as they arrive.

        Returns:
            The rows and False. After an interrupt: the rows of the finished chips from `first` on, and True.
        """
        self._calls += 1
        name = f"call/{self._calls}"
        interrupted = False
        last_time = time.perf_counter()
        try:
            for rows in self._passes(name, starts, compute):
                # Chips that a killed process had already written keep their first outcome.
                new = [row for row in rows if first <= row.draw < last and row.draw not in self._rows]
                now = time.perf_counter()
                new = [Row(row.draw, row.tallies, round((now - last_time) / len(new), 6)) for row in new]
                last_time = now
                if self._journal is not None and new:
                    self._journal.add(new)
                self._rows |= {row.draw: row for row in new}
                arrived(new)
        except KeyboardInterrupt:
            interrupted = True
        found = []
        for draw in range(first, last):
            if draw not in self._rows:
                break
            found.append(self._rows[draw])
        interrupted = interrupted and len(found) < last - first
        return (found, interrupted) if self._team is None else share(self._team, name, found, interrupted)

    def _passes(self, name: str, starts: list[int], compute: Compute):
        if self._team is not None:
            return deal(self._team, name, starts, compute)
        return (compute(start) for start in starts)


def read_together(data: Any, ranks: bool | None) -> Examples:
    """`Session.read` by all ranks, for several evaluations of the same data."""
    with Session(None, ranks) as session:
        found = session.read(data)
        session.meet()
    return found


def main_rank_makes(folder: Path, ranks: bool | None) -> None:
    """Creates a missing folder on rank 0, the rank that writes files."""
    if Session(None, ranks).main:
        folder.mkdir(parents=True, exist_ok=True)
