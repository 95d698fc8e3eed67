"""Inputs and results of a model on several chips: tensors in containers, repeated, split and joined chip by chip."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from nft_ext._common.checks import fail


def opened(value: Any) -> tuple[list, Callable[[list], Any]] | None:
    """The entries of a container, and a function that makes the same container of other entries; None for a leaf.

    Containers are lists, tuples, named tuples, mappings (also those of model libraries), dataclasses, and types that
    torch.utils._pytree knows.
    """
    kind = type(value)
    if kind is tuple or kind is list:
        return list(value), kind
    if kind is dict:
        keys = list(value)
        return list(value.values()), lambda entries: dict(zip(keys, entries))
    if value is None or isinstance(value, (Tensor, str, int, float)):
        return None
    node = pytree.SUPPORTED_NODES.get(kind)
    if node is not None:
        entries, context = node.flatten_fn(value)
        return list(entries), lambda entries: node.unflatten_fn(entries, context)
    if isinstance(value, tuple) and hasattr(kind, "_make"):
        return list(value), kind._make  # pyright: ignore[reportAttributeAccessIssue]  (a named tuple's)
    if isinstance(value, MutableMapping):
        return list(value.values()), lambda entries: _with_items(value, list(value), entries)
    if isinstance(value, list):
        return list(value), lambda entries: _with_items(value, range(len(entries)), entries)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        return [getattr(value, name) for name in names], lambda entries: _with_fields(value, names, entries)
    return None


def _with_items(value: Any, keys: Any, entries: list) -> Any:
    found = copy.copy(value)
    for key, entry in zip(keys, entries):
        found[key] = entry
    return found


def _with_fields(value: Any, names: list[str], entries: list) -> Any:
    found = copy.copy(value)
    for name, entry in zip(names, entries):
        object.__setattr__(found, name, entry)  # frozen dataclasses too
    return found


def mapped(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """`value` with function(tensor) in place of every tensor that has a dimension. Other entries stay as they are."""
    if isinstance(value, Tensor):
        return function(value) if value.dim() else value
    found = opened(value)
    if found is None:
        return value
    entries, rebuilt = found
    others = [mapped(function, entry) for entry in entries]
    return value if all(a is b for a, b in zip(entries, others)) else rebuilt(others)


def moved(value: Any, device: torch.device) -> Any:
    """`value` with every tensor on `device`. Other entries stay as they are."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    found = opened(value)
    if found is None:
        return value
    entries, rebuilt = found
    others = [moved(entry, device) for entry in entries]
    return value if all(a is b for a, b in zip(entries, others)) else rebuilt(others)


def repeated(value: Any, count: int) -> Any:
    """`value` with every tensor [B, ...] repeated to [count * B, ...], chip-major."""
    return value if count == 1 else mapped(lambda tensor: torch.cat([tensor] * count), value)


def of_chips(value: Any, count: int, chosen: Sequence[int]) -> Any:
    """`value` with every tensor [count * B, ...] cut to the chips `chosen`, [len(chosen) * B, ...]."""

    def cut(tensor: Tensor) -> Tensor:
        parts = tensor.chunk(count)
        return parts[chosen[0]] if len(chosen) == 1 else torch.cat([parts[chip] for chip in chosen])

    return mapped(cut, value)


def check_chip_major(value: Any, count: int) -> None:
    """Checks inputs under chips(repeat=False).

    Raises:
        ValueError: a tensor's dim 0 is no multiple of the number of chips.
    """
    for tensor in tensors_of(value):
        if tensor.dim() and tensor.shape[0] % count:
            fail("inputs", f"must be chip-major [{count} * B, ...] under chips(repeat=False)", list(tensor.shape))


def tensors_of(value: Any) -> list[Tensor]:
    """All tensors in a value, in order."""
    if isinstance(value, Tensor):
        return [value]
    found = opened(value)
    return [] if found is None else [tensor for entry in found[0] for tensor in tensors_of(entry)]


def signature(value: Any) -> Any:
    """What the check of a model depends on: structure, types and number of dimensions, not the sizes.

    Sizes count where they may change what a forward does: one row, an empty tensor, and tensors of different dim 0.
    """
    sizes: list[int] = []

    def of(value: Any) -> Any:
        if isinstance(value, Tensor):
            if not value.dim():
                return value.dtype
            rows = value.shape[0]
            if rows not in sizes:
                sizes.append(rows)
            return value.dtype, value.dim(), sizes.index(rows), min(rows, 2)
        if value is None or isinstance(value, (bool, int, str)):
            return value
        found = opened(value)
        if found is None:
            return type(value)
        keys = tuple(map(str, value)) if isinstance(value, Mapping) else ()
        return type(value), keys, *map(of, found[0])

    return of(value)


def combined(results: list) -> Any:
    """The results of one chip each as that of one pass.

    Every tensor [B, ...] becomes [S * B, ...], chip-major. A floating-point number without dimensions, such as a loss,
    becomes the mean over the chips. Everything else must be the same for all chips.

    Raises:
        ValueError: results that cannot be joined.
    """
    first = results[0]
    if isinstance(first, Tensor):
        if first.dim() and all(isinstance(r, Tensor) and r.shape == first.shape for r in results):
            return torch.cat(results)
        if first.dim() == 0 and first.is_floating_point():
            return torch.stack(results).mean(dim=0)
        if all(isinstance(r, Tensor) and torch.equal(r, first) for r in results):
            return first
        fail("model", "must return tensors of the same shape for every chip to run on several", list(first.shape))
    found = [opened(result) for result in results]
    if found[0] is None:
        if all(result is first or _equal(result, first) for result in results):
            return first
        rule = "must return tensors, or containers of tensors, to run on several chips; run one chip per context"
        fail("model", rule, type(first).__name__)
    entries = [container[0] for container in found if container is not None]
    keys = [(type(r), len(e), list(r) if isinstance(r, Mapping) else None) for r, e in zip(results, entries)]
    if len(entries) != len(results) or any(key != keys[0] for key in keys):
        fail("model", "must return the same kind of result for every chip to run on several", type(first).__name__)
    return found[0][1]([combined(list(together)) for together in zip(*entries)])


def _equal(a: Any, b: Any) -> bool:
    return type(a) is type(b) and isinstance(a, (bool, int, float, complex, str, bytes)) and a == b
