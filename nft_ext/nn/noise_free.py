"""Finds torch layers whose weights are on no crossbar."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.conv import _ConvNd

from nft_ext.nn.base import NoisyLayer

_MULTIPLY = (_ConvNd, nn.Linear, nn.Bilinear, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)


def noise_free_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Convolution, linear, recurrent and attention layers that are not noisy, by qualified name.

    Products inside the user's own modules are not found.
    """
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _MULTIPLY) and not isinstance(module, NoisyLayer)
    }
