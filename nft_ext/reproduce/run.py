"""Works through a grid, cell by cell; several processes may share one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from nft_ext._common.progress import duration
from nft_ext.reproduce.grid import Cell
from nft_ext.reproduce.store import Store
from nft_ext.reproduce.work import work

INTERRUPTED = 130  # exit status, as shells have it
PARENT_CHECK = 1.0  # seconds


@dataclass(frozen=True)
class Outcome:
    """computed: cells finished here. left: cells another process holds. interrupted: stopped by Ctrl-C or a polite
    kill.
    """

    computed: int
    left: int
    interrupted: bool


def run(
    cells: Sequence[Cell],
    store: Store,
    data_dir: str | None,
    device: str | None = None,
    progress: bool | None = None,
    keep_checkpoints: bool = False,
) -> Outcome:
    """Computes what is not there yet. A cell that another process works on is left to it, and looked at again at the
    end: its process may have been killed. Ctrl-C ends it after the training's state is kept.
    """
    starts = {start.key for cell in cells if (start := cell.start()) is not None}  # others begin from their weights
    computed = 0
    try:
        while True:
            before = computed
            for number, cell in enumerate(cells, start=1):
                keep = keep_checkpoints or cell.key in starts
                computed += _take(cell, f"[{number}/{len(cells)}]", store, data_dir, device, progress, keep)
            missing = sum(store.read(cell) is None for cell in cells)
            if computed == before or not missing:
                return Outcome(computed, missing, False)
    except KeyboardInterrupt:
        return Outcome(computed, 0, True)


def _take(
    cell: Cell, number: str, store: Store, data_dir: str | None, device: str | None, progress: bool | None, keep: bool
) -> bool:
    """Computes a cell, unless it is there or another process holds it; whether it did."""
    if store.read(cell) is not None:
        return False
    with store.claimed(cell) as mine:
        if not mine or store.read(cell) is not None:
            return False
        started = time.monotonic()
        found = work(cell, store, data_dir, device, progress, keep)
        store.write(cell, found)
        store.forget_state(cell)
    accuracy = ", ".join(
        f"{100 * sum(p['accuracy']) / len(p['accuracy']):.2f} % at {p['sigma']:g}" for p in found["points"]
    )
    diverged = ", diverged" if found["training"]["diverged"] else ""
    print(f"{number} {cell}: {accuracy}{diverged} ({duration(time.monotonic() - started)})", flush=True)
    return True


def run_in_processes(jobs: int, arguments: Sequence[str]) -> int:
    """Several processes with the command's own `arguments`, on one grid.

    Returns:
        Exit status: 0 all ended well, 130 interrupted, 1 one failed (its message stands above).
    """
    threads = max(1, torch.get_num_threads() // jobs)
    command = [sys.executable, "-m", "nft_ext.cli", *arguments, "--worker", "--threads", str(threads)]
    # Sessions of their own: Ctrl-C on the terminal reaches them once, from here.
    workers = [subprocess.Popen(command, start_new_session=True) for _ in range(jobs)]
    try:
        statuses = [worker.wait() for worker in workers]
    except KeyboardInterrupt:
        for worker in workers:
            if worker.poll() is None:
                worker.send_signal(signal.SIGINT)
        statuses = [worker.wait() for worker in workers]
        return INTERRUPTED
    if INTERRUPTED in statuses:
        return INTERRUPTED
    return 0 if not any(statuses) else 1


def be_a_worker() -> None:
    """This process is one of `run_in_processes`: it can be interrupted, and is when its parent ends."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # where the parent was started in a shell's background
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_CHECK)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=watch, daemon=True).start()


def interrupt_when_terminated() -> None:
    """A polite kill (SIGTERM) is as good as Ctrl-C: what is under way is kept."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
