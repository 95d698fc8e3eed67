"""Turns stored pixels into network inputs: resized, float32, normalised."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

IMAGE_SIZE = 32
_CHUNK = 2048  # images at a time, to keep the float copy small


def write_inputs(
    out: torch.Tensor, pixels: np.ndarray, full_scale: float, mean: Sequence[float], std: Sequence[float]
) -> None:
    """Computes out = (resize(pixels) / full_scale - mean) / std per channel.

    The resize is bilinear with aligned pixel centres (torch's align_corners=False), without antialiasing. Halving an
    image therefore takes the mean of two by two pixels.

    Args:
        out: float32 [n, C, H, W], the result.
        pixels: uint8 [n, C, h, w], any strides.
        full_scale: the stored value of white (1.0).
        mean, std: C numbers each, in units of full scale.
    """
    shift = torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1)
    scale = torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1)
    for start in range(0, len(pixels), _CHUNK):
        chunk = torch.from_numpy(pixels[start : start + _CHUNK].astype(np.float32))
        if chunk.shape[2:] != out.shape[2:]:
            chunk = torch.nn.functional.interpolate(
                chunk, size=out.shape[2:], mode="bilinear", align_corners=False, antialias=False
            )
        torch.div(chunk.div_(full_scale).sub_(shift), scale, out=out[start : start + _CHUNK])
