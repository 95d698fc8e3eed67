"""The configuration that determines the result of a training, as JSON."""

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
    """Everything that determines the result, except the initial weights. A state continues only under the same one.

    The SHA-256 identifies data in memory. Type and length identify other data. Its name identifies `augment`.
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
    """Versions and machine settings that can change the last bits of a result."""
    return versions() | {"threads": torch.get_num_threads(), "instruction_set": info()["instruction_set"]}


def fingerprint(data: Batches) -> dict[str, Any]:
    """Identifies a data set, by its content if it is in memory."""
    if data.tensors is None:
        return {"images": len(data), "type": type(data.items).__name__}
    return {"images": len(data), "sha256": tensor_hash((None, tensor) for tensor in data.tensors)}


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _name(augment: Callable) -> str:
    # A custom repr shows the object's options. The default repr shows an address, which changes from run to run.
    text = repr(augment)
    return getattr(augment, "__qualname__", type(augment).__qualname__) if " at 0x" in text else text
