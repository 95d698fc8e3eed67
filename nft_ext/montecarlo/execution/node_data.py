"""A test set that is read once per machine. The first rank reads it, and the other ranks map the same memory."""

from __future__ import annotations

import json
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from nft_ext.montecarlo.distributed.team import POLL, Team
from nft_ext.montecarlo.execution.data_reader import read_examples
from nft_ext.montecarlo.tasks.examples import Examples

FOLDERS = (Path("/dev/shm"), Path(tempfile.gettempdir()))  # in memory, else on disk


class NodeData:
    """`read_examples(data)` for every rank of a team. Inputs with labels are read by one rank per machine.

    A pair of tensors is already in memory, so every rank keeps its own. If the data have another structure, if no
    folder has room for a copy, or if the reader dies, every rank reads the data itself. Call `close` once every rank
    has its data; mapped memory stays valid.

    Attributes:
        examples: the data.
    """

    def __init__(self, team: Team, data):
        self._file: Path | None = None
        if isinstance(data, (tuple, list, Mapping, Examples)):
            self.examples = read_examples(data)
            return
        place = f"data/{socket.gethostname()}"
        if team.add(f"{place}/ranks") == 1:
            team.set(f"{place}/reader", str(team.rank))
            self.examples = read_examples(data)
            pair = self.examples.pair
            self._file = None if pair is None else _write_shared(*pair)
            described = None if pair is None or self._file is None else _describe(self._file, *pair)
            team.set(f"{place}/left", json.dumps(described))
        else:
            self.examples = _mapped(team, place) or read_examples(data)

    def close(self) -> None:
        """Removes the file that this rank wrote, if any."""
        if self._file is not None:
            self._file.unlink(missing_ok=True)


def _write_shared(inputs: Tensor, labels: Tensor) -> Path | None:
    """Writes both tensors' bytes to one file that only this user can read. None without room for it."""
    size = inputs.nbytes + labels.nbytes
    for folder in FOLDERS:
        if not folder.is_dir() or shutil.disk_usage(folder).free < 2 * size:
            continue
        descriptor, name = tempfile.mkstemp(prefix="nft_ext-data-", dir=folder)
        try:
            with os.fdopen(descriptor, "wb") as file:
                for tensor in (labels, inputs):  # the int64 labels first, so that both are aligned
                    file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
            return Path(name)
        except OSError:
            os.unlink(name)
    return None


def _describe(file: Path, inputs: Tensor, labels: Tensor) -> dict:
    kind = str(inputs.dtype).removeprefix("torch.")
    return {"file": str(file), "images": len(labels), "shape": list(inputs.shape), "type": kind}


def _mapped(team: Team, place: str) -> Examples | None:
    """Maps the file that the machine's reader wrote. None if the reader wrote none, or died."""
    while not team.has(f"{place}/left"):
        team.check()
        if team.has(f"{place}/reader") and not team.alive(int(team.get(f"{place}/reader"))):
            return None
        time.sleep(POLL)
    found = json.loads(team.get(f"{place}/left"))
    if found is None or not os.path.exists(found["file"]):
        return None
    content = torch.from_file(found["file"], shared=True, size=os.path.getsize(found["file"]), dtype=torch.uint8)
    labels, inputs = content.split([8 * found["images"], len(content) - 8 * found["images"]])
    inputs = inputs.view(getattr(torch, found["type"])).reshape(found["shape"])
    return Examples.of([(inputs, labels.view(torch.int64))])
