"""Reads the argument `data` into one tensor of inputs and one of labels, and checks both."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from nft_ext._common.checks import fail
from nft_ext._common.targets import INTEGERS

READ_BATCH = 512  # items per batch when a data set is read


def read_data(data) -> tuple[Tensor, Tensor]:
    """Reads `data` once, in its own order.

    Args:
        data: a pair of tensors, a DataLoader, or a map-style data set of (input, label) items.

    Returns:
        inputs [n, ...] and labels int64 [n].

    Raises:
        TypeError: another type.
        ValueError: no image, a label that is not an integer >= 0, different lengths, a NaN or infinite input.
    """
    if isinstance(data, (tuple, list)) and len(data) == 2 and all(hasattr(d, "shape") for d in data):
        inputs, labels = data
        if not (torch.is_tensor(inputs) and torch.is_tensor(labels)):
            fail(
                "data",
                "must be a pair of two tensors",
                f"{type(inputs).__name__} and {type(labels).__name__}",
                kind=TypeError,
            )
    else:
        inputs, labels = _collect(data)
    _check(inputs, labels)
    return inputs.detach(), labels.detach().long()


def _collect(data) -> tuple[Tensor, Tensor]:
    if isinstance(data, DataLoader):
        batches = data
    elif hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        if len(data) == 0:
            fail("data", "must hold at least one image", "an empty data set")
        batches = DataLoader(data, batch_size=READ_BATCH)
    else:
        fail(
            "data",
            "must be a DataLoader, a map-style Dataset or a pair of tensors",
            type(data).__name__,
            kind=TypeError,
        )
    inputs, labels = [], []
    for batch in batches:
        if not (isinstance(batch, (tuple, list)) and len(batch) == 2 and all(map(torch.is_tensor, batch))):
            fail(
                "data",
                "must have items (input, label) of a tensor and an integer",
                type(batch).__name__,
                kind=TypeError,
            )
        inputs.append(batch[0])
        labels.append(batch[1])
    if not inputs:
        fail("data", "must hold at least one image", "no batch")
    return torch.cat(inputs), torch.cat(labels)


def _check(inputs: Tensor, labels: Tensor) -> None:
    if labels.ndim != 1:
        fail("data", "labels must be one integer per image, shape [n]", list(labels.shape))
    if labels.dtype not in INTEGERS:
        fail("data", "labels must be integers", str(labels.dtype))
    if inputs.ndim == 0 or len(inputs) != len(labels):
        fail(
            "data",
            "inputs and labels must have the same length",
            f"inputs {list(inputs.shape)} and labels {list(labels.shape)}",
        )
    if len(labels) == 0:
        fail("data", "must hold at least one image", "0 images")
    if labels.min() < 0:
        fail("data", "labels must be >= 0", int(labels.min()))
    if inputs.is_floating_point() and not inputs.isfinite().all():
        bad = int((~inputs.flatten(1).isfinite()).any(dim=1).sum()) if inputs.ndim > 1 else "some"
        fail("data", "inputs must be finite", f"NaN or inf in {bad} of {len(inputs)} images")


def check_label_range(labels: Tensor, classes: int) -> None:
    """Raises ValueError if a label is not one of the model's `classes`."""
    if labels.max() >= classes:
        fail(
            "data", f"labels must lie in 0 .. {classes - 1}, because the model has {classes} classes", int(labels.max())
        )
