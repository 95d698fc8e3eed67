"""Decides whether the evaluated network gets images with channels last in memory.

nft_ext/_common/channels_last.py converts the images.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nft_ext._common.channels_last import channels_last
from nft_ext.montecarlo.execution.passes import PROBE_IMAGES, SAME, Forward, difference


def gains_by_channels_last(model: nn.Module, inputs: Tensor, device: torch.device) -> bool:
    """Whether the format may be faster: images through convolutions on a CPU."""
    return (
        device.type == "cpu" and inputs.ndim == 4 and any(isinstance(module, nn.Conv2d) for module in model.modules())
    )


def takes_channels_last(forward: Forward, inputs: Tensor, precision: str) -> bool:
    """Whether the model gives the same logits up to rounding, on a few images.

    A forward that uses `.view` may fail in this format.
    """
    inputs = inputs[:PROBE_IMAGES]
    expected = forward(inputs, [0])
    try:
        found = forward(channels_last(inputs), [0])
    except (RuntimeError, ValueError, IndexError):
        return False
    return found.shape == expected.shape and difference(found, expected) <= SAME[precision]
