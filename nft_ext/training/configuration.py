"""What a run's outcome follows from, as JSON, and how two of them differ."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nft_ext.ops.build_info import info
from nft_ext.device import NVMDevice
from nft_ext.methods import Method
from nft_ext.training.batches import Batches
from nft_ext.training.checkpoint import versions
from nft_ext.version import NOISE
from nft_ext.training.recipe import Recipe

CHUNK = 1 << 26  # bytes hashed at a time
SHOWN = 8  # differences listed in a message


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
    sha = hashlib.sha256()
    for tensor in data.tensors:
        sha.update(f"{tensor.dtype} {list(tensor.shape)} ".encode())
        row_bytes = max(1, tensor[0].numel() * tensor.element_size())
        for rows in tensor.split(max(1, CHUNK // row_bytes)):
            sha.update(rows.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return {"images": len(data), "sha256": sha.hexdigest()}


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """Every entry that differs, as "name: A there, B here"; empty where none does."""
    one, other = _flat(there), _flat(here)
    found = []
    for name in dict.fromkeys([*one, *other]):
        if one.get(name, "nothing") != other.get(name, "nothing"):
            found.append(f"{name}: {_text(one.get(name, 'nothing'))} there, {_text(other.get(name, 'nothing'))} here")
    rest = len(found) - SHOWN
    return "; ".join(found[:SHOWN]) + (f"; and {rest} more" if rest > 0 else "")


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping) or not value:
        return {prefix: list(value) if isinstance(value, tuple) else value}
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= _flat(item, f"{prefix}.{key}" if prefix else str(key))
    return flat


def _text(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:12] + "..."


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _name(augment: Callable) -> str:
    # A repr tells the options of an object, if somebody wrote it one; else it tells an address, another each time.
    text = repr(augment)
    return getattr(augment, "__qualname__", type(augment).__qualname__) if " at 0x" in text else text
