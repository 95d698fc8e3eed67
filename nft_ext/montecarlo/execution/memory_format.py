"""Whether a network under evaluation is handed images with channels last in memory (nft_ext/_common/channels_last.py)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nft_ext._common.channels_last import channels_last
from nft_ext.montecarlo.execution.passes import PROBE_IMAGES, SAME, Forward, difference


def gains_by_channels_last(model: nn.Module, inputs: Tensor, device: torch.device) -> bool:
    """Whether it is worth a try: images through convolutions on a CPU."""
    return (
        device.type == "cpu" and inputs.ndim == 4 and any(isinstance(module, nn.Conv2d) for module in model.modules())
    )


def takes_channels_last(forward: Forward, inputs: Tensor, precision: str) -> bool:
    """Whether the model gives the same logits up to rounding, on a few images: a forward with `.view` in it may refuse
    them.
    """
    inputs = inputs[:PROBE_IMAGES]
    expected = forward(inputs, [0])
    try:
        found = forward(channels_last(inputs), [0])
    except (RuntimeError, ValueError, IndexError):
        return False
    return found.shape == expected.shape and difference(found, expected) <= SAME[precision]
