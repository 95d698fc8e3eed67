"""A labelled set of images in memory. All readers of this folder return it, and users can build it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from nft_ext._common.checks import fail, integer, items, number, text


class ImageSet(Dataset):
    """Images and labels as two tensors. It is a torch Dataset, so a DataLoader accepts it.

    `set[i]` is (image [C, H, W], label as an int). Slices such as `set.images[a:b]` give whole batches faster.

    Args:
        name: for reports and messages, for example "mnist/train".
        images: float32 [n, C, H, W], normalised and finite, n >= 1. `nft_ext.models` need 32x32. Not copied.
        labels: int64 [n], each in 0 .. num_classes - 1. Not copied.
        num_classes: number of classes, at least the largest label + 1.
        mean, std: the normalisation (x - mean) / std of each channel, C numbers each, in units of full scale (1.0 is
            white). They only record it: the images are not changed. None: 0 and 1.

    Raises:
        TypeError: name is no string, mean or std is no list, images or labels are not tensors of these dtypes.
        ValueError: a shape is wrong, there is no image, a pixel is not finite, or a label is out of range.
    """

    def __init__(
        self,
        name: str,
        images: torch.Tensor,
        labels: torch.Tensor,
        num_classes: int,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ):
        _check_tensor("images", images, torch.float32, "[n, C, H, W]", 4)
        _check_tensor("labels", labels, torch.int64, "[n]", 1)
        if images.numel() == 0:
            fail("images", "must hold at least one image, of at least one pixel", f"shape {list(images.shape)}")
        if len(labels) != len(images):
            fail("labels", f"must hold one label for each of the {len(images)} images", f"{len(labels)} labels")
        if images.device != labels.device:
            fail("labels", f"must be on the torch device of images ({images.device})", str(labels.device))
        self.num_classes = integer("num_classes", num_classes, 1)
        _check_labels(labels, self.num_classes)
        _check_finite(images)
        self.name = text("name", name)
        self.images = images
        self.labels = labels
        self.mean = _per_channel("mean", mean, self.channels, default=0.0)
        self.std = _per_channel("std", std, self.channels, default=1.0)
        if min(self.std) <= 0:
            fail("std", "must be > 0 in every channel", self.std)

    @property
    def channels(self) -> int:
        """Number of channels C, 1 for grey images and 3 for colour."""
        return self.images.shape[1]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.images[index], int(self.labels[index])

    def subset(self, indices: Sequence[int] | torch.Tensor, name: str | None = None) -> ImageSet:
        """A copy of the images `indices`, in their order, with the same classes and normalisation. Indices may repeat.

        Args:
            indices: integers in 0 .. n - 1 (a list, range, array or int tensor), at least one.
            name: the new set's name; None: this set's name.

        Raises:
            TypeError: indices are not integers. For a boolean mask use mask.nonzero()[:, 0].
            ValueError: indices are empty, have more than one dimension, or are out of range.
        """
        chosen = indices.cpu().numpy() if isinstance(indices, torch.Tensor) else np.asarray(indices)
        if chosen.size == 0:
            fail("indices", "must name at least one image", "none")
        if chosen.dtype.kind not in "iu":
            fail("indices", "must be integers", str(chosen.dtype), TypeError)
        if chosen.ndim != 1:
            fail("indices", "must have one dimension", f"shape {list(chosen.shape)}")
        outside = (chosen < 0) | (chosen >= len(self))
        if outside.any():
            fail("indices", f"must be in 0..{len(self) - 1}", int(chosen[outside][0]))
        rows = torch.from_numpy(chosen.astype(np.int64)).to(self.images.device)
        return ImageSet(
            self.name if name is None else name,
            self.images[rows],
            self.labels[rows],
            self.num_classes,
            self.mean,
            self.std,
        )

    def __repr__(self) -> str:
        size = "x".join(str(s) for s in self.images.shape[1:])
        numbers = [", ".join(f"{value:g}" for value in values) for values in (self.mean, self.std)]
        return (
            f"ImageSet({self.name!r}, {len(self)} images of {size}, {self.num_classes} classes, "
            f"mean ({numbers[0]}), std ({numbers[1]}))"
        )


def _check_tensor(argument: str, value: object, dtype: torch.dtype, symbols: str, dims: int) -> None:
    rule = f"must be a tensor {symbols} of {str(dtype).removeprefix('torch.')}"
    if not isinstance(value, torch.Tensor):
        fail(argument, rule, type(value).__name__, TypeError)
    if value.dtype != dtype:
        fail(argument, rule, str(value.dtype), TypeError)
    if value.dim() != dims:
        fail(argument, rule, f"shape {list(value.shape)}")


def _check_labels(labels: torch.Tensor, num_classes: int) -> None:
    outside = (labels < 0) | (labels >= num_classes)
    if outside.any():
        index = int(outside.nonzero()[0, 0])
        fail(
            "labels",
            f"must be in 0..{num_classes - 1} (num_classes {num_classes})",
            f"{int(labels[index])} at index {index}",
        )


def _check_finite(images: torch.Tensor) -> None:
    low, high = images.aminmax()  # NaN reaches both, and no temporary of the images' size is made
    if not (low.isfinite() and high.isfinite()):
        index = int((~images.isfinite()).nonzero()[0, 0])
        fail("images", "must be finite", f"NaN or infinity in image {index}")


def _per_channel(argument: str, values: Sequence[float] | None, channels: int, default: float) -> tuple[float, ...]:
    if values is None:
        return (default,) * channels
    numbers = tuple(number(argument, value) for value in items(argument, values, "numbers"))
    if len(numbers) != channels:
        fail(argument, f"must hold one number for each of the {channels} channels", numbers)
    return numbers
