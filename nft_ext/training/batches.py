"""Batches of a data set, taken by index. The data set is checked at construction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, default_collate

from nft_ext._common.checks import fail


class Batches:
    """A data set that gives any batch by index.

    Data in memory is checked once, as a whole. Labels of other data are checked batch by batch.

    Args:
        argument: the caller's name of the data set, for error messages.
        data: in memory, sliced: an ImageSet (`.images [n, C, H, W]`, `.labels [n]`), a TensorDataset or a pair of
            tensors. Otherwise, collated item by item: a map-style Dataset of (image, label) items.

    Raises:
        TypeError: data is none of these.
        ValueError: data is empty, images and labels differ in number, images are NaN or infinite, or labels are
            negative or not integers.
    """

    def __init__(self, argument: str, data: Any) -> None:
        self.argument = argument
        self.tensors = _in_memory(data)
        self.items = data
        if self.tensors is None and not _is_map_style(data):
            rule = "must be a map-style Dataset or a pair of tensors, not a loader: fit makes the batches"
            fail(argument, rule, type(data).__name__, kind=TypeError)
        if self.tensors is not None:
            images, labels = self.tensors
            if len(images) != len(labels):
                fail(argument, "must hold one label per image", f"{len(images)} images, {len(labels)} labels")
            if not images.isfinite().all():
                fail(argument, "must hold finite images", "NaN or inf")
        if len(self) == 0:
            fail(argument, "must hold at least one image", "an empty data set")
        if self.tensors is not None:
            self._checked_labels(self.tensors[1])

    def __len__(self) -> int:
        return len(self.items if self.tensors is None else self.tensors[1])

    def take(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Images `[B, C, H, W]` and labels `[B]` (int64) at `indices [B]`."""
        if self.tensors is not None:
            return self.tensors[0][indices], self.tensors[1][indices].long()
        images, labels = default_collate([self.items[i] for i in indices.tolist()])
        return images, self._checked_labels(labels).long()

    def check_classes(self, classes: int) -> None:
        """Refuses labels >= `classes`: now for data in memory, batch by batch for other data."""
        self.classes = classes
        if self.tensors is not None:
            self._checked_labels(self.tensors[1])

    classes: int | None = None

    def _checked_labels(self, labels: Tensor) -> Tensor:
        if labels.dim() != 1 or labels.is_floating_point() or labels.is_complex():
            rule = "labels must be integers, one per image; give criterion= for other targets"
            fail(self.argument, rule, f"{labels.dtype} {list(labels.shape)}")
        if labels.min() < 0:
            fail(self.argument, "labels must be >= 0", int(labels.min()))
        if self.classes is not None and labels.max() >= self.classes:
            fail(self.argument, f"labels must lie in 0..{self.classes - 1}, the model's classes", int(labels.max()))
        return labels


def permuted(n: int, batch_size: int, generator: torch.Generator, least: int = 2) -> list[Tensor]:
    """The indices 0..n-1 in random order, in batches of `batch_size`.

    A last batch of fewer than `least` images joins the batch before it: batch statistics of one image can be undefined.
    """
    batches = list(torch.randperm(n, generator=generator).split(batch_size))
    if len(batches) > 1 and len(batches[-1]) < least:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


def micro_batches(indices: Tensor, count: int) -> list[Tensor]:
    """`indices` in `count` nearly equal parts, or in fewer so that each part has at least two images."""
    return list(indices.tensor_split(max(1, min(count, len(indices) // 2))))


def _in_memory(data: Any) -> tuple[Tensor, Tensor] | None:
    pair: Sequence[Any]
    if isinstance(data, TensorDataset):
        pair = data.tensors
    elif isinstance(data, (tuple, list)):
        pair = data
    else:
        pair = (getattr(data, "images", None), getattr(data, "labels", None))
    if len(pair) != 2:
        return None
    images, labels = pair
    if isinstance(images, Tensor) and isinstance(labels, Tensor) and images.dim() > 0 and labels.dim() > 0:
        return images, labels
    return None


def _is_map_style(data: Any) -> bool:
    if isinstance(data, (tuple, list, DataLoader, IterableDataset)):
        return False
    return hasattr(data, "__len__") and hasattr(data, "__getitem__")
