"""Augmentation of batches: a random crop of the padded image and a random horizontal flip, in one gather."""

from __future__ import annotations

import numbers
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from nft_ext._common.checks import boolean, fail, instance, integer, items, number
from nft_ext.data.image_set import ImageSet

PADDING = 4  # pixels, the paper's for CIFAR
AUGMENTED = ("cifar10", "cifar100", "tinyimagenet")  # photographs only: a mirrored digit is no digit


class CropFlip:
    """Pads a batch [B, C, H, W], crops each image at a random place and flips it with probability 1/2.

    Output pixel (i, j) of image b is pixel (top_b + i, left_b + j') of the padded image. j' = W-1-j if b is flipped,
    else j. top_b and left_b are uniform on 0 .. 2 padding.

    A generator of the CPU draws for every torch device, so a seed gives the same crops everywhere.

    Args:
        padding: pixels per side, >= 0. With 0 only the flip remains.
        fill: value of the padding, one number per channel or one for all. For normalised images black is
            (0 - mean) / std. `augment_for` sets it.
        flip: whether to flip.
        generator: a CPU generator; None: torch's own.

    Raises:
        TypeError: fill is no number and no list, or generator is no torch.Generator.
        ValueError: padding < 0, flip is no bool, or a fill is not finite. The call refuses images that are not
            [B, C, H, W] or do not have len(fill) channels.
    """

    def __init__(
        self,
        padding: int = PADDING,
        fill: float | Sequence[float] = 0.0,
        flip: bool = True,
        generator: torch.Generator | None = None,
    ):
        self.padding = integer("padding", padding, 0)
        if isinstance(fill, (Tensor, np.ndarray)):
            fill = fill.reshape(-1).tolist()
        values = [fill] if isinstance(fill, numbers.Number) else items("fill", fill, "numbers")
        self.fill = torch.tensor([number("fill", v) for v in values], dtype=torch.float32).reshape(1, -1, 1, 1)
        self.flip = boolean("flip", flip)
        if generator is not None:
            instance("generator", generator, torch.Generator, "a torch.Generator or None")
        self.generator = generator

    def __call__(self, images: Tensor) -> Tensor:
        """Augmented images [B, C, H, W], a new tensor of the same dtype and torch device."""
        channels = self.fill.shape[1]
        if images.dim() != 4 or channels not in (1, images.shape[1]):
            wanted = "C" if channels == 1 else channels
            fail("images", f"must have shape [B, {wanted}, H, W]", f"shape {list(images.shape)}")
        batch = len(images)
        places = torch.empty(3, batch, dtype=torch.int64)  # top, left, flipped?
        places[:2] = torch.randint(0, 2 * self.padding + 1, (2, batch), generator=self.generator)
        places[2] = torch.randint(0, 2, (batch,), generator=self.generator) if self.flip else 0
        return crop_flip(images, self.padding, self.fill, *places.to(images.device, non_blocking=True))

    def __repr__(self) -> str:
        return f"CropFlip(padding={self.padding}, fill={self.fill.flatten().tolist()}, flip={self.flip})"


def crop_flip(images: Tensor, padding: int, fill: Tensor, top: Tensor, left: Tensor, flipped: Tensor) -> Tensor:
    """Crops and flips at given places.

    Args:
        images: [B, C, H, W], any dtype.
        padding: pixels per side.
        fill: [1, C or 1, 1, 1], value of the padding.
        top, left: int64 [B], in 0 .. 2 padding.
        flipped: int64 [B], 0 or 1.

    Returns:
        [B, C, H, W], in the dtype of `images`.
    """
    batch, channels, height, width = images.shape
    padded = fill.to(images).expand(batch, channels, height + 2 * padding, width + 2 * padding).contiguous()
    padded[:, :, padding : padding + height, padding : padding + width] = images
    row = torch.arange(height, device=images.device) + top[:, None]  # [B, H]
    column = torch.arange(width, device=images.device).expand(batch, width)
    column = torch.where(flipped[:, None] == 1, width - 1 - column, column) + left[:, None]  # [B, W]
    place = (row * padded.shape[3])[:, :, None] + column[:, None, :]  # [B, H, W], within a padded plane
    place = place.view(batch, 1, height * width).expand(batch, channels, -1)
    return padded.flatten(2).gather(2, place).view(batch, channels, height, width)


def augment_for(train: ImageSet) -> CropFlip | None:
    """The paper's augmentation of a training set, for `fit(augment=...)`.

    CIFAR gets crop and flip with black padding; digits and MNIST get None. The paper does not describe Tiny ImageNet's
    augmentation, so it gets CIFAR's.

    Args:
        train: a training set of `nft_ext.data.load`. The part of its name before "/" identifies it.

    Raises:
        TypeError: train is not an ImageSet.
    """
    if not isinstance(train, ImageSet):
        fail("train", "must be an ImageSet of nft_ext.data.load", type(train).__name__, TypeError)
    if train.name.split("/")[0] not in AUGMENTED:
        return None
    return CropFlip(PADDING, [-mean / std for mean, std in zip(train.mean, train.std)])
