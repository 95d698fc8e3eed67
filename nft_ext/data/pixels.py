"""From stored pixels to network inputs: resized (to 32x32 mostly), float32, normalised."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

IMAGE_SIZE = 32
_CHUNK = 2048  # images at a time: the float copy of a chunk is small, so only `out` is ever large


def write_inputs(
    out: torch.Tensor, pixels: np.ndarray, full_scale: float, mean: Sequence[float], std: Sequence[float]
) -> None:
    """out = (resize(pixels) / full_scale - mean) / std, channel by channel.

    The resize to the size of `out` is bilinear with pixel centres aligned (torch's align_corners=False) and without
    antialiasing, which only matters when an image shrinks: to half the side it is the mean of two by two pixels, and no
    built-in set shrinks otherwise.

    Args:
        out: float32 [n, C, H, W], written.
        pixels: uint8 [n, C, h, w], any strides.
        full_scale: the stored value that means 1.0 (white).
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
