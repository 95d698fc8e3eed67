"""The saved state of a training. A killed training continues from it, bit for bit.

The state is one safetensors file, replaced atomically, so tensors and figures always belong to the same step. It holds
no random generator: randomness follows from seed and step (`randomness.py`).
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Mapping
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from nft_ext._common.checks import fail, number
from nft_ext._common.differences import differences, listed
from nft_ext._common.files import check_writable_target, remove_leftovers
from nft_ext.training.configuration import configuration_differences, environment
from nft_ext.training.container import read_tensors, write_tensors

FORMAT = "nft_ext training state 1"
EXPECTED = "the state of a training, written by fit"


class StateFile:
    """The file with the state of one training.

    Args:
        path: the file, by convention `*.state`.
        configuration: the configuration; a saved state must have the same one.
        resume: True: continue from the file if it exists. False: start over and replace the file.
        every: seconds between saves within an epoch; 0 saves after every step.
        writes: whether this process writes the file. Only the first rank does.

    Raises:
        ValueError, FileNotFoundError: the path cannot be written, or `every` is negative.
    """

    def __init__(
        self, path: str | PathLike, configuration: Mapping[str, Any], resume: bool, every: float, writes: bool
    ) -> None:
        self.path = check_writable_target("state", path)
        if self.path.exists() and not self.path.is_file():
            fail("state", "must name a regular file, not a pipe or a device", str(path))
        self.configuration = json.loads(json.dumps(configuration))  # as JSON returns it
        self.resume = resume
        self.every = number("save_every", every, low=0.0)
        self.writes = writes
        self.saved = time.monotonic()
        if writes:
            remove_leftovers(self.path)

    def read(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors and figures of the last save, None for a new training.

        Raises:
            ValueError: the file is short, corrupt, not a state, or has another configuration.
        """
        if not (self.resume and self.path.exists()):
            return None
        tensors, meta = read_tensors("state", self.path, FORMAT, EXPECTED)
        if not all(isinstance(meta.get(name), dict) for name in ("configuration", "environment", "facts")):
            fail("state", f"must name {EXPECTED}; its metadata are not whole", str(self.path))
        found, unrecorded = configuration_differences(meta["configuration"], self.configuration)
        differing = listed(found, "there", "here")
        if differing:
            fail(
                "state",
                "must have the same configuration; use another file, or resume=False to start over",
                f"{self.path}, which differs in {differing}",
            )
        if unrecorded:
            warnings.warn(
                f"state: {self.path} is of an earlier version and does not record {', '.join(unrecorded)}. These could "
                "not be checked",
                stacklevel=2,
            )
        if unread := ", ".join(self.configuration.get("unread", ())):
            warnings.warn(f"state: values of these types cannot be compared with {self.path}: {unread}", stacklevel=2)
        recorded = {name: value for name, value in environment().items() if name in meta["environment"]}
        differing = listed(differences(meta["environment"], recorded), "there", "here")
        if differing:
            warnings.warn(
                f"state: {self.path} was written in another environment; the last bits may differ: {differing}",
                stacklevel=2,
            )
        return tensors, meta["facts"]

    def due(self) -> bool:
        """Whether a save within an epoch is due."""
        return self.writes and time.monotonic() - self.saved >= self.every

    def write(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Replaces the file.

        Raises:
            OSError: the file cannot be written. The older state stays.
        """
        if not self.writes:
            return
        meta = {"configuration": self.configuration, "environment": environment(), "facts": facts}
        write_tensors(self.path, tensors, meta, FORMAT)
        self.saved = time.monotonic()


def pack_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's tensors as "PARAMETER.NAME". Its numbers follow from the recipe."""
    state = optimizer.state_dict()["state"]
    return {f"{i}.{name}": v for i, entry in state.items() for name, v in entry.items() if isinstance(v, Tensor)}


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Loads the tensors of `pack_optimizer` into the optimizer."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, entry = name.split(".", 1)
        state.setdefault(int(index), {})[entry] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries "PREFIX/NAME", by NAME."""
    return {name.removeprefix(prefix + "/"): t for name, t in tensors.items() if name.startswith(prefix + "/")}
