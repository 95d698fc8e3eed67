"""The finished cells of a grid: one JSON file each, written whole, claimed by one process at a time."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nft_ext._common.checks import fail
from nft_ext._common.files import remove_leftovers, write_json
from nft_ext.reproduce.grid import Cell


class Store:
    """OUT/cells/KEY.json, and beside them what unfinished cells need: OUT/running/KEY.safetensors (a training's state)
    and KEY.lock.

    Several processes may share one store.
    """

    def __init__(self, out: Path):
        self.out, self.cells, self.running, self.checkpoints = out, out / "cells", out / "running", out / "checkpoints"
        if out.exists() and not out.is_dir():
            fail("--out", "must be a folder", str(out))
        for folder in (self.cells, self.running, self.checkpoints):
            folder.mkdir(parents=True, exist_ok=True)

    def read(self, cell: Cell) -> dict[str, Any] | None:
        """A finished cell under the line's own name; None if it is not finished.

        Raises:
            ValueError: its file is not what a cell's should be.
        """
        path = self.cells / f"{cell.key}.json"
        try:
            found = json.loads(path.read_text())
            points = found["points"]
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            fail("--out", f"must hold whole cells; remove this one and it is computed again ({error})", str(path))
        if len(points) != len(cell.sigmas):
            fail("--out", "must hold whole cells; remove this one and it is computed again", str(path))
        return found | {"config": found["config"] | {"variant": cell.variant}}

    def write(self, cell: Cell, found: dict[str, Any]) -> None:
        """Keeps a finished cell; whoever reads sees all of it or nothing."""
        write_json(self.cells / f"{cell.key}.json", {"key": cell.key, **found})

    def others(self, cells: list[Cell]) -> int:
        """How many finished cells of other configurations lie here."""
        return len({path.stem for path in self.cells.glob("*.json")} - {cell.key for cell in cells})

    def state(self, cell: Cell) -> Path:
        """Where the training of a cell keeps what a killed run is continued from."""
        return self.running / f"{cell.key}.safetensors"

    def checkpoint(self, cell: Cell) -> Path:
        return self.checkpoints / f"{cell.key}.safetensors"

    def forget_state(self, cell: Cell) -> None:
        """Removes a training's state, once its cell is finished."""
        self.state(cell).unlink(missing_ok=True)
        remove_leftovers(self.state(cell))

    @contextlib.contextmanager
    def claimed(self, cell: Cell, wait: bool = False) -> Iterator[bool]:
        """Whether this process may work on the cell: not while another does, unless it waits for that one.

        The system takes a dead process's lock away: a lock file that is left behind stands in nobody's way.
        """
        path = self.running / f"{cell.key}.lock"
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True
        finally:
            os.close(descriptor)
