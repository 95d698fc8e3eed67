"""What a run's outcome follows from, as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nft_ext._common.tensor_hash import tensor_hash
from nft_ext.device import NVMDevice
from nft_ext.methods import Method
from nft_ext.ops.build_info import info
from nft_ext.training.batches import Batches
from nft_ext.training.checkpoint import versions
from nft_ext.training.recipe import Recipe
from nft_ext.version import NOISE


def configuration(
    prepared: nn.Module,
    method: Method,
    nvm: NVMDevice | None,
    recipe: Recipe,
    data: Mapping[str, Batches],
    augment: Callable[[Tensor], Tensor] | None,
    **others: Any,
) -> dict[str, Any]:
    """Everything but the weights the run begins with; a run continues under the same configuration only.

    Data in memory is told by its SHA-256, other data by its type and length, `augment` by its name.
    """
    return {
        "method": method.config(),
        "nvm": None if nvm is None else nvm.describe(),
        "recipe": dataclasses.asdict(recipe),
        "model": {name: f"{_short(t.dtype)}{list(t.shape)}" for name, t in prepared.state_dict().items()},
        "data": {name: fingerprint(batches) for name, batches in data.items()},
        "augment": None if augment is None else _name(augment),
        "noise": NOISE,
        **others,
    }


def environment() -> dict[str, Any]:
    """What the last bits of the sums depend on, beside the configuration."""
    return versions() | {"threads": torch.get_num_threads(), "instruction_set": info()["instruction_set"]}


def fingerprint(data: Batches) -> dict[str, Any]:
    """Says which images these are, as far as that can be told."""
    if data.tensors is None:
        return {"images": len(data), "type": type(data.items).__name__}
    return {"images": len(data), "sha256": tensor_hash((None, tensor) for tensor in data.tensors)}


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _name(augment: Callable) -> str:
    # A repr tells the options of an object, if somebody wrote it one; else it tells an address, another each time.
    text = repr(augment)
    return getattr(augment, "__qualname__", type(augment).__qualname__) if " at 0x" in text else text
