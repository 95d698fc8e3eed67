"""Reads the argument `data` into memory, once, and checks pairs of inputs and class labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from nft_ext._common.checks import fail
from nft_ext._common.targets import INTEGERS
from nft_ext.montecarlo.tasks.batches import collated
from nft_ext.montecarlo.tasks.examples import Examples
from nft_ext.nn.batch import size_of
from nft_ext.nn.chip_inputs import opened, tensors_of

READ_BATCH = 512  # items per batch when a data set is read


def read_examples(data: Any) -> Examples:
    """Reads `data` once, in its own order.

    Args:
        data: a pair of tensors; a mapping of tensors; a DataLoader or another iterable of batches; a map-style data
            set; a list of batches, or of examples if an entry has a number or a tensor without dimensions.

    Raises:
        TypeError: another type.
        ValueError: no example, examples of different shapes, inputs of a pair that are not finite.
    """
    if isinstance(data, Examples):
        return data
    if isinstance(data, (tuple, list)) and len(data) == 2 and all(hasattr(d, "shape") for d in data):
        return _pair(*data)
    if isinstance(data, Mapping):
        if tensors_of(data) and size_of(data) is None:
            shapes = [list(tensor.shape) for tensor in tensors_of(data)]
            fail("data", "must have tensors of one length, if it is a mapping", f"shapes {shapes[:4]}")
        return Examples.of([data])
    found = Examples.of(_batches(data))
    if found.reason is None and _is_pair(found.whole):
        return _pair(*found.whole)
    return found


def read_data(data: Any) -> tuple[Tensor, Tensor]:
    """Reads data of images and class labels once, in their own order.

    Args:
        data: as `read_examples` takes it.

    Returns:
        inputs [n, ...] and labels int64 [n].

    Raises:
        TypeError: another type.
        ValueError: no image, a label that is not an integer >= 0, different lengths, a NaN or infinite input.
    """
    examples = read_examples(data)
    if not _is_pair(examples.whole):
        rule = "must have items (input, label) of a tensor and an integer"
        fail("data", rule, type(examples.whole).__name__, kind=TypeError)
    inputs, labels = examples.whole
    check_labels(labels, len(inputs))
    return inputs, labels.long()


def _is_pair(batch: Any) -> bool:
    return type(batch) in (tuple, list) and len(batch) == 2 and all(map(torch.is_tensor, batch))


def _pair(inputs: Any, labels: Any) -> Examples:
    if not (torch.is_tensor(inputs) and torch.is_tensor(labels)):
        kinds = f"{type(inputs).__name__} and {type(labels).__name__}"
        fail("data", "must be a pair of two tensors", kinds, kind=TypeError)
    inputs, labels = inputs.detach(), labels.detach()
    if inputs.ndim == 0 or labels.ndim == 0 or len(inputs) != len(labels):
        shapes = f"inputs {list(inputs.shape)} and labels {list(labels.shape)}"
        fail("data", "inputs and labels must have the same length", shapes)
    if len(labels) == 0:
        fail("data", "must hold at least one image", "0 images")
    if inputs.is_floating_point() and not inputs.isfinite().all():
        bad = int((~inputs.flatten(1).isfinite()).any(dim=1).sum()) if inputs.ndim > 1 else "some"
        fail("data", "inputs must be finite", f"NaN or inf in {bad} of {len(inputs)} images")
    return Examples.of([(inputs, labels.long() if labels.dtype in INTEGERS and labels.ndim == 1 else labels)])


def _batches(data: Any) -> list[Any]:
    if isinstance(data, DataLoader):
        return list(data)
    if isinstance(data, (list, tuple)):
        return list(data) if data and _holds_batches(data) else _read_items(data)
    if isinstance(data, (str, bytes, Tensor)):
        rule = "must be a DataLoader, a map-style Dataset, a pair of tensors, or an iterable of batches"
        fail("data", rule, type(data).__name__, kind=TypeError)
    if hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        return _read_items(data)
    if not isinstance(data, Iterable):
        rule = "must be a DataLoader, a map-style Dataset, a pair of tensors, or an iterable of batches"
        fail("data", rule, type(data).__name__, kind=TypeError)
    return list(data)


def _read_items(data: Any) -> list[Any]:
    if len(data) == 0:
        fail("data", "must hold at least one image", "an empty data set")
    return list(DataLoader(data, batch_size=READ_BATCH, collate_fn=collated))


def _holds_batches(data: list | tuple) -> bool:
    """Whether the entries of a list are batches. An entry with a number is an example.

    Raises:
        ValueError: they may be either.
    """
    entries = list(data)
    if any(size_of(entry) is None or _has_number(entry) for entry in entries):
        return False
    if all(tensor.dim() == 1 for entry in entries for tensor in tensors_of(entry)):
        rule = (
            "must not be a list whose entries may be examples or batches; give a DataLoader, or a generator of batches"
        )
        shapes = [list(tensor.shape) for tensor in tensors_of(entries[0])]
        fail("data", rule, f"entries with tensors of shapes {shapes[:4]}")
    return True


def _has_number(value: Any) -> bool:
    if isinstance(value, (bool, int, float)):
        return True
    found = None if isinstance(value, Tensor) else opened(value)
    return found is not None and any(map(_has_number, found[0]))


def check_labels(labels: Tensor, images: int) -> None:
    """Checks class labels.

    Raises:
        ValueError: they are not one integer >= 0 per image.
    """
    if labels.ndim != 1 or len(labels) != images:
        fail("data", "labels must be one integer per image, shape [n]", list(labels.shape))
    if labels.dtype not in INTEGERS:
        fail("data", "labels must be integers", str(labels.dtype))
    if labels.min() < 0:
        fail("data", "labels must be >= 0", int(labels.min()))


def check_label_range(labels: Tensor, classes: int) -> None:
    """Raises ValueError if a label is not one of the model's `classes`."""
    if labels.max() >= classes:
        fail(
            "data", f"labels must lie in 0 .. {classes - 1}, because the model has {classes} classes", int(labels.max())
        )
