"""Decides whether the evaluated network gets images with channels last in memory.

nft_ext/_common/channels_last.py converts the images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nft_ext._common.channels_last import channels_last
from nft_ext.montecarlo.execution.passes import SAME
from nft_ext.nn.chip_check import difference
from nft_ext.nn.chip_inputs import tensors_of


def gains_by_channels_last(model: nn.Module, inputs: Sequence[Any], device: torch.device) -> bool:
    """Whether the format may be faster: images through convolutions on a CPU. inputs: positional, of the forward."""
    images = any(isinstance(value, Tensor) and value.dim() == 4 for value in inputs)
    return device.type == "cpu" and images and any(isinstance(module, nn.Conv2d) for module in model.modules())


def takes_channels_last(model: nn.Module, inputs: Sequence[Any], precision: str) -> bool:
    """Whether the model gives the same output up to rounding, on a few images.

    A forward that uses `.view` may fail in this format.
    """
    expected = tensors_of(model(*inputs))
    try:
        laid_out = [channels_last(v) if isinstance(v, Tensor) and v.dim() == 4 else v for v in inputs]
        found = tensors_of(model(*laid_out))
    except (RuntimeError, ValueError, IndexError):
        return False
    same = SAME[precision]
    return len(found) == len(expected) and all(
        a.shape == b.shape and difference(a, b) <= same for a, b in zip(found, expected)
    )
