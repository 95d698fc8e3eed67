"""The finished cells of a grid: one JSON file each, written atomically, claimed by one process at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nft_ext._common.checked_json import intact, with_checksum
from nft_ext._common.checks import fail
from nft_ext._common.files import make_writable_folder, remove_leftovers, write_json
from nft_ext._common.reading import read_json
from nft_ext.reproduce.grid import Cell


class Store:
    """The folder OUT. Several processes can share it.

    OUT/cells/KEY.json holds a finished cell. OUT/running holds KEY.safetensors (the state of a training) and KEY.lock.
    OUT/checkpoints holds weights.
    """

    def __init__(self, out: Path):
        self.out, self.cells, self.running, self.checkpoints = out, out / "cells", out / "running", out / "checkpoints"
        if out.exists() and not out.is_dir():
            fail("--out", "must be a folder", str(out))
        for folder in (self.cells, self.running, self.checkpoints):
            make_writable_folder("--out", folder)

    def read(self, cell: Cell) -> dict[str, Any] | None:
        """The content of a finished cell, with this cell's variant name. None if it is not finished.

        Raises:
            ValueError: the file is damaged.
        """
        path = self.cells / f"{cell.key}.json"
        expected = "an undamaged result; remove this file to compute it again"
        try:
            found = read_json("--out", path, expected)
        except FileNotFoundError:
            return None
        points, config = found.get("points"), found.get("config")
        if (
            not isinstance(points, list)
            or not isinstance(config, dict)
            or not intact(found)
            or found.get("key") != cell.key
            or len(points) != len(cell.sigmas)
        ):
            fail("--out", f"must be {expected}", str(path))
        return found | {"config": config | {"variant": cell.variant}}

    def write(self, cell: Cell, found: dict[str, Any]) -> None:
        """Writes a finished cell and a checksum, atomically."""
        write_json(self.cells / f"{cell.key}.json", with_checksum({"key": cell.key, **found}))

    def others(self, cells: list[Cell]) -> int:
        """The number of finished cells of other configurations."""
        return len({path.stem for path in self.cells.glob("*.json")} - {cell.key for cell in cells})

    def state(self, cell: Cell) -> Path:
        """The file for the state of a cell's training."""
        return self.running / f"{cell.key}.safetensors"

    def checkpoint(self, cell: Cell) -> Path:
        return self.checkpoints / f"{cell.key}.safetensors"

    def forget_state(self, cell: Cell) -> None:
        """Removes the state of a finished cell's training."""
        self.state(cell).unlink(missing_ok=True)
        remove_leftovers(self.state(cell))

    @contextlib.contextmanager
    def claimed(self, cell: Cell, wait: bool = False) -> Iterator[bool]:
        """Whether this process may compute the cell. False if another process does, unless `wait` is set.

        The system releases the lock of a dead process, so an old lock file does no harm.
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
