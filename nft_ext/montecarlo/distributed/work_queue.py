"""Deals the passes of an evaluation to ranks on request, and deals the passes of dead ranks again.

Passes are tasks 0, 1, 2, ... A rank draws a ticket, and ticket t gives it task t. So a slow rank takes fewer tasks.
Tickets beyond the last task wait: rank 0 turns the unfinished passes of dead ranks into further tasks. Finished rows go
to rank 0 through the store, which keeps them even if the sender dies.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator

from nft_ext.montecarlo.distributed.rows import Row
from nft_ext.montecarlo.distributed.team import POLL, Team

Compute = Callable[[int], list[Row]]  # first draw of a pass -> rows of the pass


def deal(team: Team, name: str, starts: list[int], compute: Compute) -> Iterator[list[Row]]:
    """Runs all passes on all ranks.

    Args:
        team: the ranks.
        name: name of this call, the same on all ranks.
        starts: first draw of every pass.
        compute: runs one pass; must give the same rows on every rank.

    Yields:
        On rank 0, the rows of every pass as they arrive. On other ranks nothing; they work until all passes are done.

    Raises:
        KeyboardInterrupt: on rank 0, if another rank was interrupted.
        RanksError: another rank stopped with an error.
    """
    return _lead(team, name, starts, compute) if team.main else _follow(team, name, compute)


def share(team: Team, name: str, rows: list[Row], interrupted: bool) -> tuple[list[Row], bool]:
    """Returns rank 0's rows, and whether it was interrupted, on every rank. Ends the call `name`."""
    if team.main:
        team.set(f"{name}/rows", "".join(row.line() + "\n" for row in rows))
    found = team.agree(f"{name}/end", {"interrupted": interrupted})
    if not team.main:
        rows = [Row.parse(line) for line in team.get(f"{name}/rows").splitlines()]
    return rows, found["interrupted"]


def _follow(team: Team, name: str, compute: Compute) -> Iterator[list[Row]]:
    try:
        tasks = json.loads(team.wait(f"{name}/tasks"))
        while (ticket := _ticket(team, name)) is not None:
            start = tasks[ticket] if ticket < len(tasks) else json.loads(team.get(f"{name}/task/{ticket}"))
            _send(team, name, start, compute(start))
    except KeyboardInterrupt:
        team.set("interrupt", str(team.rank))  # rank 0 reacts, and `share` waits for it
    return
    yield


def _ticket(team: Team, name: str) -> int | None:
    """A ticket whose task exists; None after the end of the call."""
    ticket = _draw_ticket(team, name)
    while not team.has(f"{name}/end"):
        team.check()
        if ticket < team.add(f"{name}/issued", 0):
            return ticket
        if not team.alive(0):
            raise team.orphaned()
        time.sleep(POLL)
    return None


def _draw_ticket(team: Team, name: str) -> int:
    ticket = team.add(f"{name}/tickets") - 1
    team.set(f"{name}/holder/{ticket}", str(team.rank))
    return ticket


def _send(team: Team, name: str, start: int, rows: list[Row]) -> None:
    content = json.dumps({"start": start, "lines": [row.line() for row in rows]})
    team.set(f"{name}/rank/{team.rank}/{start}", content)
    number = team.add(f"{name}/sent") - 1
    team.set(f"{name}/sent/{number}", f"{name}/rank/{team.rank}/{start}")


def _lead(team: Team, name: str, starts: list[int], compute: Compute) -> Iterator[list[Row]]:
    ledger = _Ledger(team, name, starts)
    ticket = _draw_ticket(team, name)
    while ledger.missing:
        team.check()
        if ticket < len(ledger.tasks):
            start = ledger.tasks[ticket]
            if start in ledger.missing:  # else another rank has finished this pass
                rows = compute(start)
                ledger.missing.discard(start)
                yield rows
            ticket = _draw_ticket(team, name)
        else:
            ledger.deal_again()
            time.sleep(POLL)
        yield from ledger.arrived()
        if team.has("interrupt"):
            raise KeyboardInterrupt


class _Ledger:
    """Rank 0's record of tasks and rows.

    Attributes:
        tasks: first draw of the pass of every task.
        missing: first draws of the passes without rows.
    """

    def __init__(self, team: Team, name: str, starts: list[int]):
        self.team, self.name = team, name
        self.tasks = list(starts)
        self.missing = set(starts)
        self._latest = {start: task for task, start in enumerate(starts)}  # pass -> its last task
        self._since: dict[int, float] = {}  # task with an unknown holder -> time when that was first seen
        self._unread: list[int] = []
        self._sent = 0
        team.set(f"{name}/tasks", json.dumps(starts))
        team.add(f"{name}/issued", len(starts))

    def arrived(self) -> Iterator[list[Row]]:
        """Yields the rows that arrived since the last call, once per pass."""
        total = self.team.add(f"{self.name}/sent", 0)
        self._unread += range(self._sent, total)
        self._sent = total
        for number in list(self._unread):
            if not self.team.has(f"{self.name}/sent/{number}"):
                continue  # not there yet, or the sender died at this moment
            self._unread.remove(number)
            content = json.loads(self.team.get(self.team.get(f"{self.name}/sent/{number}", delete=True), delete=True))
            if content["start"] in self.missing:
                self.missing.discard(content["start"])
                yield [Row.parse(line) for line in content["lines"]]

    def deal_again(self) -> None:
        """Makes new tasks for the unfinished passes of dead ranks."""
        drawn = self.team.add(f"{self.name}/tickets", 0)
        for start in sorted(self.missing):
            task = self._latest[start]
            if task < drawn and self._lost(task):
                self._latest[start] = len(self.tasks)
                self.team.set(f"{self.name}/task/{len(self.tasks)}", json.dumps(start))
                self.tasks.append(start)
                self.team.add(f"{self.name}/issued")

    def _lost(self, task: int) -> bool:
        if self.team.has(f"{self.name}/holder/{task}"):
            return not self.team.alive(int(self.team.get(f"{self.name}/holder/{task}")))
        # The rank that drew this ticket has not named itself yet, or died before it did.
        return time.monotonic() - self._since.setdefault(task, time.monotonic()) > self.team.timeout
