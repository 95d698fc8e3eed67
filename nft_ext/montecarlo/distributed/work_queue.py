"""Deals the passes of an evaluation to ranks as they ask for them, and again where a rank died.

Passes are tasks 0, 1, 2, ... A rank takes a ticket; ticket t entitles to task t. So a slow rank takes few. Tickets
beyond the last task wait: rank 0 turns the unfinished passes of dead ranks into further tasks. Finished rows go to rank
0 through the store, which keeps them whatever becomes of their sender.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator

from nft_ext.montecarlo.distributed.ranks import POLL, Team
from nft_ext.montecarlo.distributed.rows import Row

Compute = Callable[[int], list[Row]]  # the rows of the pass that begins with a draw


def deal(team: Team, name: str, starts: list[int], compute: Compute) -> Iterator[list[Row]]:
    """Rank 0: the rows of every pass in `starts`, as they arrive. Other ranks: nothing; they work until all is done.

    name: of this call, the same on all ranks. compute must give the same rows on every rank.
    Raises KeyboardInterrupt on rank 0 if another rank was interrupted, RanksError if one stopped with an error.
    """
    return _lead(team, name, starts, compute) if team.main else _follow(team, name, compute)


def share(team: Team, name: str, rows: list[Row], interrupted: bool) -> tuple[list[Row], bool]:
    """Rank 0's rows, and whether it was interrupted, on every rank; ends the call `name`."""
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
        team.set("interrupt", str(team.rank))  # and waits for what rank 0 makes of it, in `share`
    return
    yield


def _ticket(team: Team, name: str) -> int | None:
    """A ticket whose task is there, None once the call has ended."""
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
    desk = _Desk(team, name, starts)
    ticket = _draw_ticket(team, name)
    while desk.missing:
        team.check()
        if ticket < len(desk.tasks):
            start = desk.tasks[ticket]
            # Dealt again and done meanwhile, there is nothing to do.
            if start in desk.missing:
                rows = compute(start)
                desk.missing.discard(start)
                yield rows
            ticket = _draw_ticket(team, name)
        else:
            desk.deal_again()
            time.sleep(POLL)
        for rows in desk.arrived():
            yield rows
        if team.has("interrupt"):
            raise KeyboardInterrupt


class _Desk:
    """Rank 0's books. tasks: task -> start of its pass. missing: passes without rows."""

    def __init__(self, team: Team, name: str, starts: list[int]):
        self.team, self.name = team, name
        self.tasks = list(starts)
        self.missing = set(starts)
        self._latest = {start: task for task, start in enumerate(starts)}  # pass -> its last task
        self._since: dict[int, float] = {}  # task taken by nobody known -> when that was first seen
        self._unread: list[int] = []
        self._sent = 0
        team.set(f"{name}/tasks", json.dumps(starts))
        team.add(f"{name}/issued", len(starts))

    def arrived(self) -> Iterator[list[Row]]:
        """Rows that came since the last look, each pass's once."""
        total = self.team.add(f"{self.name}/sent", 0)
        self._unread += range(self._sent, total)
        self._sent = total
        for number in list(self._unread):
            if not self.team.has(f"{self.name}/sent/{number}"):
                continue  # on its way, or its sender died just there
            self._unread.remove(number)
            content = json.loads(self.team.get(self.team.get(f"{self.name}/sent/{number}", delete=True), delete=True))
            if content["start"] in self.missing:
                self.missing.discard(content["start"])
                yield [Row.parse(line) for line in content["lines"]]

    def deal_again(self) -> None:
        """Makes tasks of the unfinished passes whose ranks are dead."""
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
        # Drawn by a rank that has not said so: it is about to, or died in between.
        return time.monotonic() - self._since.setdefault(task, time.monotonic()) > self.team.timeout
