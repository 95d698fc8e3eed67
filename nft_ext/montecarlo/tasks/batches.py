"""Batches of any structure: tensors in containers, cut into examples, joined and repeated along dim 0."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nft_ext._common.checks import fail
from nft_ext._common.tensor_hash import tensor_hash
from nft_ext.nn.batch import TARGETS
from nft_ext.nn.chip_inputs import mapped, opened, tensors_of


def examples_of(batch: Any, index: Tensor | slice, size: int) -> Any:
    """The examples `index` of a batch of `size` examples.

    Tensors are indexed along dim 0, and so are lists of `size` strings or other entries without tensors.
    """
    if isinstance(batch, Tensor):
        return batch[index.to(batch.device) if isinstance(index, Tensor) else index] if batch.dim() else batch
    found = opened(batch)
    if found is None:
        return batch
    entries, rebuilt = found
    if isinstance(batch, (list, tuple)) and entries and not tensors_of(entries):
        if len(entries) != size:
            return batch
        chosen = entries[index] if isinstance(index, slice) else [entries[i] for i in index.tolist()]
        return type(batch)(chosen)
    return rebuilt([examples_of(entry, index, size) for entry in entries])


def first_of(value: Any, count: int, size: int) -> Any:
    """The first `count` of `size` examples. Tensors of another dim 0 stay whole."""
    if isinstance(value, Tensor):
        return value[:count] if value.dim() and len(value) == size else value
    found = opened(value)
    if found is None:
        return value
    entries, rebuilt = found
    if isinstance(value, (list, tuple)) and entries and not tensors_of(entries):
        return examples_of(value, slice(0, count), size)
    return rebuilt([first_of(entry, count, size) for entry in entries])


def copied(batch: Any) -> Any:
    """The batch with copies of its tensors, so that a write to them stays without effect."""
    return mapped(torch.clone, batch)


def moved(batch: Any, device: torch.device) -> Any:
    """The batch with its tensors on `device`."""
    return mapped(lambda tensor: tensor.to(device), batch)


def bytes_of(batch: Any) -> int:
    """Bytes of all tensors."""
    return sum(tensor.nbytes for tensor in tensors_of(batch))


def for_chips(batch: Any, size: int, chips: int) -> Any:
    """The batch repeated for several chips, chip-major: [chips * size, ...]."""
    if chips == 1:
        return copied(batch)
    return joined([batch] * chips, [size] * chips)[0]


def of_chip(value: Any, chip: int, size: int, chips: int) -> Any:
    """One chip's part of a chip-major output or batch.

    Objects that are no containers of tensors, such as caches, are replaced: any use of them is an error.
    """
    if isinstance(value, Tensor):
        return value[chip * size : (chip + 1) * size] if value.dim() else value
    found = opened(value)
    if found is None:
        plain = value is None or isinstance(value, (str, bytes, bool, int, float))
        return value if plain or chips == 1 else _Whole(type(value).__name__)
    entries, rebuilt = found
    if isinstance(value, (list, tuple)) and entries and not tensors_of(entries):
        return examples_of(value, slice(chip * size, (chip + 1) * size), chips * size)
    return rebuilt([of_chip(entry, chip, size, chips) for entry in entries])


class _Whole:
    """Stands for an object that holds the results of all chips and cannot be cut."""

    def __init__(self, kind: str) -> None:
        self.__dict__["_kind"] = kind

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        fail("forward", "must return tensors in containers; one chip's part cannot be cut out", self._kind, TypeError)

    def __getitem__(self, key: Any) -> Any:
        return self.__getattr__(str(key))

    def __iter__(self) -> Any:
        return self.__getattr__("iter")


def joined(batches: list, sizes: list[int]) -> tuple[Any, str | None]:
    """All batches as one.

    Args:
        batches: at least one.
        sizes: examples of each.

    Returns:
        The whole and None; or None and the reason why the batches have no common shape.
    """
    first = batches[0]
    if isinstance(first, Tensor):
        if any(not isinstance(b, Tensor) for b in batches):
            return None, "their structures differ"
        if any(b.dtype != first.dtype for b in batches):
            return None, "their types differ: " + ", ".join(sorted({str(b.dtype) for b in batches}))
        shapes = {tuple(b.shape[1:]) for b in batches}
        if len(shapes) > 1:
            return None, "their tensors have different shapes: " + _some(map(list, sorted(shapes)))
        return torch.cat(batches), None
    found = [opened(b) for b in batches]
    if found[0] is None:
        same = all(f is None and type(b) is type(first) and b == first for f, b in zip(found, batches))
        return (first, None) if same else (None, f"their entries of type {type(first).__name__} differ")
    if any(f is None or type(b) is not type(first) for f, b in zip(found, batches)):
        return None, "their structures differ"
    entries = [f[0] for f in found if f is not None]
    if isinstance(first, (list, tuple)) and not tensors_of(entries):
        if all(len(e) == size for e, size in zip(entries, sizes)):
            return type(first)([entry for e in entries for entry in e]), None
        return (first, None) if all(b == first for b in batches) else (None, "their lists differ")
    keys = [list(b) if isinstance(b, Mapping) else len(e) for b, e in zip(batches, entries)]
    if any(k != keys[0] for k in keys):
        return None, "their structures differ"
    wholes = []
    for parts in zip(*entries):
        whole, reason = joined(list(parts), sizes)
        if reason is not None:
            return None, reason
        wholes.append(whole)
    return found[0][1](wholes), None


def collated(items: list) -> Any:
    """Examples as one batch: tensors, arrays and numbers are stacked, and other entries become lists.

    Raises:
        TypeError: an item has no tensor, array or number.
        ValueError: items of different structure or shape.
    """
    first = items[0]
    if isinstance(first, (Tensor, np.ndarray, np.generic, bool, int, float)):
        return _stacked(items)
    if isinstance(first, Mapping):
        if any(not isinstance(item, Mapping) or list(item) != list(first) for item in items):
            fail("data", "must have items with the same keys", _some(sorted({str(list(i)) for i in items})))
        return {key: collated([item[key] for item in items]) for key in first}
    if isinstance(first, (list, tuple)):
        if isinstance(first, list) and _numbers(first):
            return _stacked(items)
        if any(not isinstance(item, (list, tuple)) or len(item) != len(first) for item in items):
            fail("data", "must have items of one structure", f"{type(first).__name__}s of different lengths")
        parts = [collated(list(part)) for part in zip(*items)]
        return type(first)(*parts) if hasattr(first, "_fields") else tuple(parts)
    if isinstance(first, (str, bytes)):
        return list(items)
    if first is not None or any(item is not None for item in items):
        rule = "must have items (input, label), or dicts, of tensors, arrays, numbers and strings"
        fail("data", rule, type(first).__name__, kind=TypeError)
    return None


def _numbers(value: Any) -> bool:
    """Whether `value` is a list of numbers, or of such lists."""
    if isinstance(value, list):
        return bool(value) and all(_numbers(entry) for entry in value)
    return isinstance(value, (bool, int, float, np.generic))


def _stacked(items: list) -> Tensor:
    try:
        # default_collate has numbers of Python as int64 and float64, too.
        kinds = {type(item) for item in items}
        if kinds <= {float} or (kinds <= {float, int} and float in kinds):
            return torch.tensor(items, dtype=torch.float64)
        tensors = [item if isinstance(item, Tensor) else torch.as_tensor(item) for item in items]
        shapes = {tuple(tensor.shape) for tensor in tensors}
        if len(shapes) > 1:
            rule = "must have items of one shape: pad them, or give a DataLoader whose collate_fn pads"
            fail("data", rule, _some(map(list, sorted(shapes))))
        return torch.stack(tensors)
    except (RuntimeError, TypeError) as error:
        fail("data", "must have items of one type and shape", str(error).splitlines()[0])


def _some(values: Iterable[Any]) -> str:
    values = [str(value) for value in values]
    return ", ".join(values[:4]) + (f" and {len(values) - 4} more" if len(values) > 4 else "")


def labels_of(batch: Any) -> Tensor | None:
    """The target of a batch: the tensor under the one key of TARGETS, or the last one of a tuple; None without one."""
    if isinstance(batch, Mapping):
        found = [batch[key] for key in TARGETS if key in batch]
        return found[0] if len(found) == 1 and isinstance(found[0], Tensor) else None
    if isinstance(batch, (tuple, list)) and len(batch) > 1 and isinstance(batch[-1], Tensor):
        return batch[-1]
    return None


def batch_hash(batches: Iterable[Any], digits: int) -> str:
    """Hash over all tensors, and the structure and other entries of all batches."""
    tensors: list[tuple[str, Tensor]] = []
    texts = [json.dumps(_described(batch, f"{number}", tensors)) for number, batch in enumerate(batches)]
    return tensor_hash(tensors, "\n".join(texts))[:digits]


def _described(value: Any, path: str, tensors: list[tuple[str, Tensor]]) -> Any:
    if isinstance(value, Tensor):
        tensors.append((path, value))
        return "tensor"
    found = opened(value)
    if found is None:
        if isinstance(value, float) and not math.isfinite(value):
            return repr(value)
        return value if value is None or isinstance(value, (bool, int, float, str)) else type(value).__name__
    keys = list(map(str, value)) if isinstance(value, Mapping) else range(len(found[0]))
    return {str(key): _described(entry, f"{path}/{key}", tensors) for key, entry in zip(keys, found[0])}
