"""The ranks of one evaluation: shared values, signs of life, errors. They talk through a torch.distributed store.

It uses a store because a collective waits for every rank, and so waits for ever for a dead one. A store must only
outlive the ranks.

Every rank increments a key of its own from a thread. A rank counts as dead if its key stands still for
NFT_EXT_RANK_TIMEOUT seconds (default 30). Its rows stay valid. If it comes back, none of its rows counts twice.
"""

from __future__ import annotations

import atexit
import json
import os
import threading
import time
import uuid
import warnings
from typing import Any

from nft_ext._common.checks import fail, number
from nft_ext._common.differences import differences, listed

JOIN = 10  # number of timeouts that a rank may take to join, because it first reads its model and data
POLL = 0.02  # seconds between two looks into the store
ANSWER = 0.1  # seconds between rank 0's looks for new ranks
LAST = 5  # seconds to wait for a thread's call of the store when the process ends
PART = 1 << 20  # bytes per value; the store refuses values a few times as large


class RanksError(RuntimeError):
    """Another rank failed or died."""


def rank_timeout() -> float:
    """NFT_EXT_RANK_TIMEOUT in seconds, default 30."""
    text = os.environ.get("NFT_EXT_RANK_TIMEOUT", "30")
    try:
        return number("NFT_EXT_RANK_TIMEOUT", float(text), 1.0)
    except ValueError:
        fail("NFT_EXT_RANK_TIMEOUT", "must be a number of seconds >= 1", text)


class Team:
    """This process and the other ranks. Rank 0 decides, writes and prints.

    Args:
        store: a torch.distributed store that all ranks share.
        rank: number of this process.
        size: number of processes.
        timeout: seconds of silence after which a rank counts as dead; None: NFT_EXT_RANK_TIMEOUT.
    """

    def __init__(self, store, rank: int, size: int, timeout: float | None = None):
        from torch.distributed.distributed_c10d import PrefixStore  # not in every torch

        self.rank, self.size = rank, size
        self.timeout = rank_timeout() if timeout is None else timeout
        self._ended = threading.Event()
        self._threads: list[threading.Thread] = []
        atexit.register(self._end_threads)
        self._store = PrefixStore("nft_ext", store)
        self._store = PrefixStore(self._name_team() if rank == 0 else self._ask_name(), self._store)
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
        """Ends the threads before the interpreter ends; a thread inside a call of the store would abort the process."""
        self._ended.set()
        for thread in self._threads:
            thread.join(LAST)

    # torchrun keeps its store, with all its contents, when it restarts ranks. So each start of the team gets a new name
    # from rank 0, which tells it to every rank that asks with a new word.

    def _name_team(self) -> str:
        name = uuid.uuid4().hex
        self._start(self._tell_name, name, self._store)
        return name

    def _tell_name(self, name: str, store) -> None:
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
            return  # the store is gone; the main thread raises

    def _ask_name(self) -> str:
        word = uuid.uuid4().hex
        self._do("set", f"knock/{self._do('add', 'places', 1)}", word)
        deadline = time.monotonic() + JOIN * self.timeout
        while not self._do("check", [f"name for {word}"]):
            if time.monotonic() > deadline:
                raise RanksError(
                    f"ranks: rank 0 must call monte_carlo too, and does not answer rank {self.rank} for "
                    f"{JOIN * self.timeout:g} s; ranks=False lets one rank evaluate alone"
                )
            time.sleep(POLL)
        return self._do("get", f"name for {word}").decode()

    @property
    def main(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def begin(self) -> None:
        """Enters the next evaluation. All ranks run the same evaluations in the same order."""
        self._calls += 1
        now = time.monotonic()
        self._seen = {r: (value, now) for r, (value, _) in self._seen.items()}

    # ---- the store; names belong to the current evaluation

    def set(self, name: str, text: str) -> None:
        """Stores `text` under `name`."""
        content = text.encode()
        parts = range(0, len(content), PART)
        for i in parts:
            self._do("set", f"{self._calls}/{name}/{i // PART}", content[i : i + PART])
        self._do("set", f"{self._calls}/{name}", str(len(parts)))

    def has(self, name: str) -> bool:
        """Whether `name` was set."""
        return self._do("check", [f"{self._calls}/{name}"])

    def get(self, name: str, delete: bool = False) -> str:
        """The text stored under `name`."""
        key = f"{self._calls}/{name}"
        parts = [f"{key}/{i}" for i in range(int(self._do("get", key)))]
        content = b"".join(self._do("get", part) for part in parts)
        for part in [*parts, key] if delete else []:
            self._do("delete_key", part)
        return content.decode()

    def add(self, name: str, amount: int = 1) -> int:
        """Adds to the counter `name`; returns its new value."""
        return self._do("add", f"{self._calls}/{name}", amount)

    def _do(self, operation: str, *arguments):
        try:
            return getattr(self._store, operation)(*arguments)
        except RuntimeError as error:  # from torch.distributed: the connection is lost
            reason = str(error).splitlines()[0]
            raise RanksError(
                f"ranks: rank {self.rank} no longer reaches the ranks' store; rank 0 or torchrun may have ended. "
                f"Chips in a resume file stay there ({reason})"
            ) from error

    # ---- signs of life

    def _beat(self) -> None:
        count = 0
        try:
            while not self._ended.is_set():
                self._store.set(f"beat/{self.rank}", str(count))
                count += 1
                self._ended.wait(self.timeout / 5)
        except RuntimeError:
            return  # the main thread meets the same error and raises

    def alive(self, rank: int) -> bool:
        """Whether `rank` gave a sign of life lately. A rank that has not joined yet has more time."""
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
            self._gone.add(rank)  # later evaluations do not wait for it either
        return rank not in self._gone

    def orphaned(self) -> RanksError:
        """The error to raise if rank 0 is dead."""
        return RanksError(f"ranks: rank 0 died (silent for {self.timeout:g} s); chips in a resume file stay there")

    # ---- all ranks together

    def wait(self, name: str) -> str:
        """Waits until rank 0 has set `name`, and returns the text.

        Raises:
            RanksError: another rank stopped with an error, or rank 0 died.
        """
        while not self.has(name):
            if self.has("stop") and not self.has(name):  # if both are set, `name` is the answer
                self.check()
            if not self.alive(0):
                raise self.orphaned()
            time.sleep(POLL)
        return self.get(name)

    def agree(self, name: str, value: Any = None) -> Any:
        """Returns rank 0's `value` on every rank. It must be valid JSON."""
        if self.main:
            self.set(name, json.dumps(value))
        return json.loads(self.get(name) if self.main else self.wait(name))

    def check_same(self, facts: dict[str, Any]) -> None:
        """Checks that all ranks have the same arguments. Rank 0 continues without ranks that do not join.

        Args:
            facts: the values that must be the same, valid JSON.

        Raises:
            ValueError: on every rank, if the facts differ; names them with both values.
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
                self.set("differ", text)  # joined too late for rank 0 to compare
        if self.has("differ"):
            fail("ranks", "must be called with the same arguments", self.get("differ"))

    def _await_facts(self, rank: int, deadline: float) -> None:
        while not self.has(f"facts/{rank}"):
            self.check()
            if not self.alive(rank) or time.monotonic() > deadline:
                warnings.warn(
                    f"ranks: rank {rank} did not join in time; continuing without it. ranks=False lets one rank "
                    "evaluate alone",
                    stacklevel=4,
                )
                return
            time.sleep(POLL)

    def _difference(self, facts: dict[str, Any], rank: int) -> str:
        found = differences(facts, json.loads(self.get(f"facts/{rank}")))
        return listed(found, "on rank 0", f"on rank {rank}")

    def stop(self, reason: str) -> None:
        """Tells the other ranks that this rank ends with an error."""
        self.set("stop", f"rank {self.rank} stopped: {reason}")

    def check(self) -> None:
        """Checks the other ranks.

        Raises:
            RanksError: another rank stopped with an error.
        """
        if self.has("stop"):
            raise RanksError(f"ranks: {self.get('stop')}")

    def end(self) -> None:
        """Leaves the evaluation. Rank 0 leaves last, because the store may end with it."""
        self.set(f"left/{self.rank}", "")
        since = time.monotonic()
        for rank in range(1, self.size) if self.main else ():
            while not self.has(f"left/{rank}") and self.alive(rank):
                if self.has("stop") and time.monotonic() - since > self.timeout:
                    break  # the rank is in a long pass, and sees the error after it
                time.sleep(POLL)
