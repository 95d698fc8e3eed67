"""Computes the cells of a grid. Several processes can share one grid."""

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
from nft_ext.reproduce.tuning import described
from nft_ext.reproduce.work import work

INTERRUPTED = 130  # exit status after Ctrl-C, as in shells
PARENT_CHECK = 1.0  # seconds between checks of the parent process


@dataclass(frozen=True)
class Outcome:
    """The outcome of `run`.

    Attributes:
        computed: number of cells that this process finished.
        left: number of cells that other processes still compute.
        interrupted: True after Ctrl-C or SIGTERM.
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
    """Computes all unfinished cells that no other process computes.

    These are checked again at the end, because the other process may have been killed. Ctrl-C stops after the state of
    the training is saved.
    """
    starts = {start.key for cell in cells if (start := cell.start()) is not None}  # their weights start other cells
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
    """Computes a cell unless it is finished or another process computes it. Returns whether it did."""
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
    if not cell.sigmas and found["training"]["best"] is not None:
        accuracy = f"validation {100 * found['training']['best']['val_accuracy']:.2f} %"
    if "tuned" in found:
        accuracy = f"{described(found['tuned'])}, {accuracy}"
    diverged = ", diverged" if found["training"]["diverged"] else ""
    print(f"{number} {cell}: {accuracy}{diverged} ({duration(time.monotonic() - started)})", flush=True)
    return True


def run_in_processes(jobs: int, arguments: Sequence[str]) -> int:
    """Runs the command with `arguments` in several processes, on one grid.

    Returns:
        The exit status: 0 if all succeeded, 130 if interrupted, 1 if one failed (it has printed its message).
    """
    threads = max(1, torch.get_num_threads() // jobs)
    command = [sys.executable, "-m", "nft_ext.cli", *arguments, "--worker", "--threads", str(threads)]
    # In new sessions, Ctrl-C on the terminal reaches the workers only once, through this process.
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
    """Makes this process a worker of `run_in_processes`: it stops when its parent ends."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore SIGINT
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_CHECK)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=watch, daemon=True).start()


def interrupt_when_terminated() -> None:
    """Makes SIGTERM act like Ctrl-C, so the state of the training is saved."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
