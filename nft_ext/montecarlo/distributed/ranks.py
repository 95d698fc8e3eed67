"""The processes of one evaluation, as torchrun or Slurm start them; they talk through a torch.distributed store.

A store, not collectives: a collective waits for every rank, and so for ever for one that died; a store has only
to outlive the others. It is the one of the initialised process group (gloo, nccl or another), or the one that RANK,
WORLD_SIZE, MASTER_ADDR and MASTER_PORT lead to.

Every rank counts up a key of its own, from a thread; one whose key stands still for NFT_EXT_RANK_TIMEOUT seconds
(default 30) is taken for dead. Nothing it sent is lost, and if it does come back, nothing it sends counts twice.
"""

from __future__ import annotations

import atexit
import datetime
import json
import os
import threading
import time
import uuid
import warnings
from typing import Any

import torch

from nft_ext._common import processes
from nft_ext._common.checks import fail, number
from nft_ext._common.differences import differences, listed

JOIN = 10  # timeouts a rank may take to arrive: its data and model have to be read
POLL = 0.02  # seconds between looks
ANSWER = 0.1  # seconds between rank 0's looks for newcomers
LAST = 5  # seconds that a thread's call of the store may still take when the process ends
CHUNK = 1 << 20  # bytes of one value; the store refuses a few times as many

_team: Team | None = None


class RanksError(RuntimeError):
    """Another rank failed, or is gone."""


def team_of(ranks: bool | None) -> Team | None:
    """The processes to share the work with, None for this one alone.

    ranks: None: those of torchrun, if there are any; False: this process alone; True: insists.

    Raises ValueError where `ranks` insists and there is no way to others, or only a part of the address is set.
    """
    global _team
    if ranks not in (None, True, False):
        fail("ranks", "must be None, True or False", ranks)
    if ranks is False:
        return None
    if _team is None:
        _team = _connect(bool(ranks))
    return _team if _team is not None and _team.size > 1 else None


def _connect(insists: bool) -> Team | None:
    if not torch.distributed.is_available():
        if insists:
            fail("ranks", "must be None or False with a torch that has no torch.distributed", True)
        return None
    if processes.grouped():
        store = torch.distributed.distributed_c10d._get_default_store()
        return Team(store, processes.rank(), processes.size())
    if processes.size() == 1 and not insists:
        return None
    processes.check_address("ranks", ", or ranks=False for this process alone")
    timeout = datetime.timedelta(seconds=JOIN * _timeout())
    store, rank, size = next(torch.distributed.rendezvous("env://", timeout=timeout))
    return Team(store, rank, size)


def _timeout() -> float:
    text = os.environ.get("NFT_EXT_RANK_TIMEOUT", "30")
    try:
        return number("NFT_EXT_RANK_TIMEOUT", float(text), 1.0)
    except ValueError:
        fail("NFT_EXT_RANK_TIMEOUT", "must be a number of seconds >= 1", text)


class Team:
    """This process among `size`, `rank` being its number. Rank 0 decides, writes and prints.

    store: a torch.distributed store that all ranks share. timeout: seconds of silence after which a rank counts as
        dead.
    """

    def __init__(self, store, rank: int, size: int, timeout: float | None = None):
        self.rank, self.size = rank, size
        self.timeout = _timeout() if timeout is None else timeout
        self._ended = threading.Event()
        self._threads: list[threading.Thread] = []
        atexit.register(self._end_threads)
        self._store = torch.distributed.PrefixStore("nft_ext", store)
        self._store = torch.distributed.PrefixStore(self._open() if rank == 0 else self._knock(), self._store)
        self._calls = 0
        self._last_look = 0.0
        now = time.monotonic()
        self._seen: dict[int, tuple[bytes | None, float]] = dict.fromkeys(range(size), (None, now))
        self._gone: set[int] = set()
        self._start(self._beat)

    def _start(self, work, *arguments) -> None:
        self._threads.append(threading.Thread(target=work, args=arguments, name="nft_ext ranks", daemon=True))
        self._threads[-1].start()

    def _end_threads(self) -> None:
        """Before the interpreter ends: a thread that it finds inside a call of the store aborts the process."""
        self._ended.set()
        for thread in self._threads:
            thread.join(LAST)

    # torchrun keeps its store when it restarts ranks, with all that was in it. So rank 0 names each life of the team
    # anew, and tells the name to whoever asks with a word that was not there before.

    def _open(self) -> str:
        name = uuid.uuid4().hex
        self._start(self._answer, name, self._store)
        return name

    def _answer(self, name: str, store) -> None:
        places: set[int] = set()
        seen = 0
        try:
            while not self._ended.is_set():
                total = store.add("places", 0)
                places |= set(range(seen + 1, total + 1))
                seen = total
                for place in [place for place in places if store.check([f"knock/{place}"])]:
                    store.set(f"name for {store.get(f'knock/{place}').decode()}", name)
                    places.discard(place)
                self._ended.wait(ANSWER)
        except RuntimeError:
            return  # the store is gone, and the main thread says so

    def _knock(self) -> str:
        word = uuid.uuid4().hex
        self._do("set", f"knock/{self._do('add', 'places', 1)}", word)
        deadline = time.monotonic() + JOIN * self.timeout
        while not self._do("check", [f"name for {word}"]):
            if time.monotonic() > deadline:
                raise RanksError(
                    f"ranks: rank 0 does not answer rank {self.rank} (for {JOIN * self.timeout:g} s); does "
                    "it call monte_carlo too? ranks=False lets one rank evaluate by itself"
                )
            time.sleep(POLL)
        return self._do("get", f"name for {word}").decode()

    @property
    def main(self) -> bool:
        return self.rank == 0

    def begin(self) -> None:
        """Enters the next evaluation; all ranks do the same ones in the same order."""
        self._calls += 1
        now = time.monotonic()
        self._seen = {r: (value, now) for r, (value, _) in self._seen.items()}

    # ---- the store; names are of the current evaluation

    def set(self, name: str, text: str) -> None:
        """Leaves `text` under `name`."""
        content = text.encode()
        parts = range(0, len(content), CHUNK)
        for i in parts:
            self._do("set", f"{self._calls}/{name}/{i // CHUNK}", content[i : i + CHUNK])
        self._do("set", f"{self._calls}/{name}", str(len(parts)))

    def has(self, name: str) -> bool:
        """Whether `name` was set."""
        return self._do("check", [f"{self._calls}/{name}"])

    def get(self, name: str, delete: bool = False) -> str:
        """What was set under `name`."""
        key = f"{self._calls}/{name}"
        parts = [f"{key}/{i}" for i in range(int(self._do("get", key)))]
        content = b"".join(self._do("get", part) for part in parts)
        for part in [*parts, key] if delete else []:
            self._do("delete_key", part)
        return content.decode()

    def add(self, name: str, amount: int = 1) -> int:
        """Adds to the counter `name`; its value after that."""
        return self._do("add", f"{self._calls}/{name}", amount)

    def _do(self, operation: str, *arguments):
        try:
            return getattr(self._store, operation)(*arguments)
        except RuntimeError as error:  # of torch.distributed: the connection is gone
            reason = str(error).splitlines()[0]
            raise RanksError(
                f"ranks: rank {self.rank} no longer reaches the store that ranks talk through (has rank 0 "
                f"or torchrun ended?); chips in a resume file stay there ({reason})"
            ) from error

    # ---- who is there

    def _beat(self) -> None:
        count = 0
        try:
            while not self._ended.is_set():
                self._store.set(f"beat/{self.rank}", str(count))
                count += 1
                self._ended.wait(self.timeout / 5)
        except RuntimeError:
            return  # the main thread meets the same and says so

    def alive(self, rank: int) -> bool:
        """Whether `rank` was heard of lately; one not heard of yet has longer."""
        now = time.monotonic()
        if now - self._last_look > self.timeout / 10:
            self._last_look = now
            for other, (value, _) in self._seen.items():
                beat = self._do("get", f"beat/{other}") if self._do("check", [f"beat/{other}"]) else None
                if beat != value:
                    self._seen[other] = (beat, now)
                    self._gone.discard(other)
        value, since = self._seen[rank]
        if now - since > self.timeout * (1 if value is not None else JOIN):
            self._gone.add(rank)  # not waited for in later evaluations either
        return rank not in self._gone

    def orphaned(self) -> RanksError:
        """What to raise where rank 0 is dead."""
        return RanksError(f"ranks: rank 0 is gone (silent for {self.timeout:g} s); chips in a resume file stay there")

    # ---- together

    def wait(self, name: str) -> str:
        """What rank 0 sets under `name`, once it has.

        Raises RanksError if another rank stopped with an error, or rank 0 is gone.
        """
        while not self.has(name):
            if self.has("stop") and not self.has(name):  # set both, the one waited for says more
                self.check()
            if not self.alive(0):
                raise self.orphaned()
            time.sleep(POLL)
        return self.get(name)

    def agree(self, name: str, value: Any = None) -> Any:
        """Rank 0's `value` (JSON), on every rank."""
        if self.main:
            self.set(name, json.dumps(value))
        return json.loads(self.get(name) if self.main else self.wait(name))

    def check_same(self, facts: dict[str, Any]) -> None:
        """Raises ValueError on every rank if one was called with other arguments; says which, with both values.

        facts: JSON-able, what must be the same. Rank 0 goes on without ranks that do not arrive.
        """
        facts = json.loads(json.dumps(facts))
        self.set(f"facts/{self.rank}", json.dumps(facts))
        if self.main:
            deadline = time.monotonic() + self.timeout * JOIN
            for rank in range(1, self.size):
                self._await_facts(rank, deadline)
                if self.has(f"facts/{rank}") and (text := self._difference(facts, rank)):
                    self.set("differ", text)
                    break
            self.set("compared", "")
        else:
            self.wait("compared")
            if not self.has("differ") and (text := self._difference(json.loads(self.get("facts/0")), self.rank)):
                self.set("differ", text)  # came too late to be compared by rank 0
        if self.has("differ"):
            fail("ranks", "must be called with the same arguments", self.get("differ"))

    def _await_facts(self, rank: int, deadline: float) -> None:
        while not self.has(f"facts/{rank}"):
            self.check()
            if not self.alive(rank) or time.monotonic() > deadline:
                warnings.warn(
                    f"ranks: rank {rank} does not take part (not heard of in time; ranks=False lets one rank "
                    "evaluate by itself); going on without it",
                    stacklevel=4,
                )
                return
            time.sleep(POLL)

    def _difference(self, facts: dict[str, Any], rank: int) -> str:
        found = differences(facts, json.loads(self.get(f"facts/{rank}")))
        return listed(found, "on rank 0", f"on rank {rank}")

    def stop(self, reason: str) -> None:
        """Tells the others that this rank ends with an error."""
        self.set("stop", f"rank {self.rank} stopped: {reason}")

    def check(self) -> None:
        """Raises RanksError if another rank stopped with an error."""
        if self.has("stop"):
            raise RanksError(f"ranks: {self.get('stop')}")

    def end(self) -> None:
        """Leaves the evaluation; rank 0 last, as the store may end with it."""
        self.set(f"left/{self.rank}", "")
        since = time.monotonic()
        for rank in range(1, self.size) if self.main else ():
            while not self.has(f"left/{rank}") and self.alive(rank):
                if self.has("stop") and time.monotonic() - since > self.timeout:
                    break  # in the middle of a long pass: it learns of the error when it looks next
                time.sleep(POLL)
