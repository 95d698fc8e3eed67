"""Works through a grid, cell by cell; several processes may share one."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence

import torch

from nft_ext.progress import duration
from nft_ext.reproduce.grid import Cell
from nft_ext.reproduce.store import Store
from nft_ext.reproduce.work import work


def run(cells: Sequence[Cell], store: Store, data_dir: str | None, device: str | None = None, progress: bool | None = None,
        keep_checkpoints: bool = False) -> tuple[int, bool]:
    """Computes what is not there yet: (cells computed here, whether all was done by somebody or here).

    A cell that another process works on is left to it. Ctrl-C ends it after the training's state is kept.
    """
    done = 0
    for number, cell in enumerate(cells, start=1):
        with store.claimed(cell) as mine:
            if not mine or store.read(cell) is not None:
                continue
            started = time.monotonic()
            try:
                found = work(cell, store, data_dir, device, progress, keep_checkpoints)
            except KeyboardInterrupt:
                return done, False
            store.write(cell, found)
            store.forget_state(cell)
            done += 1
            accuracy = ", ".join(f"{100 * sum(p['accuracy']) / len(p['accuracy']):.2f} % at {p['sigma']:g}" for p in found["points"])
            print(f"[{number}/{len(cells)}] {cell}: {accuracy} ({duration(time.monotonic() - started)})", flush=True)
    return done, all(store.read(cell) is not None for cell in cells)


def run_in_processes(jobs: int, arguments: Sequence[str]) -> bool:
    """Several processes with the command's own `arguments`, on one grid; False if one failed or was interrupted."""
    threads = max(1, torch.get_num_threads() // jobs)
    command = [sys.executable, "-m", "nft_ext.cli", *arguments, "--threads", str(threads)]
    workers = [subprocess.Popen(command) for _ in range(jobs)]
    try:
        statuses = [worker.wait() for worker in workers]
    except KeyboardInterrupt:  # the terminal has told the workers too; they keep their states
        statuses = [worker.wait() for worker in workers]
    return all(status == 0 for status in statuses)
