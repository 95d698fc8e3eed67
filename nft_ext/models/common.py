"""What the architectures share: the width factor and the check of an input's shape."""

from __future__ import annotations

import torch

from nft_ext._common.checks import fail, integer, number

IMAGE_SIZE = 32  # pixels a side; the sizes of the fully connected layers follow from it


def scaled(channels: int, width: float) -> int:
    """`channels * width`, to the nearest multiple of 8, or to the nearest integer >= 1 where it is below 8.

    Multiples of 8 keep every layer on whole SIMD vectors.
    """
    exact = channels * width
    return round(exact / 8) * 8 if exact >= 8 else max(1, round(exact))


def check_sizes(num_classes: int, in_channels: int, width: float) -> tuple[int, int, float]:
    """The three arguments of an architecture, validated.

    Raises:
        ValueError: num_classes or in_channels not an integer >= 1, width not a finite number > 0.
    """
    num_classes = integer("num_classes", num_classes, 1)
    in_channels = integer("in_channels", in_channels, 1)
    width = number("width", width)
    if width <= 0:
        fail("width", "must be a finite number > 0", width)
    return num_classes, in_channels, width


def check_images(model: str, x: torch.Tensor, in_channels: int) -> None:
    """Refuse anything but a batch of images [B, in_channels, 32, 32].

    Raises:
        ValueError: another number of dimensions, channels or pixels.
    """
    if x.dim() != 4 or x.shape[1] != in_channels or x.shape[2] != IMAGE_SIZE or x.shape[3] != IMAGE_SIZE:
        fail(f"{model} input", f"must have shape [B, {in_channels}, {IMAGE_SIZE}, {IMAGE_SIZE}]", list(x.shape))
