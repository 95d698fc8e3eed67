"""Which of torch's layers multiply by weights that no crossbar holds."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.conv import _ConvNd

from nft_ext.nn.base import NoisyLayer

_MULTIPLY = (_ConvNd, nn.Linear, nn.Bilinear, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)


def noise_free_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Convolutions, linear, recurrent and attention layers, by qualified name, that are not noisy layers. What a module
    of the user's own multiplies is not known.
    """
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _MULTIPLY) and not isinstance(module, NoisyLayer)
    }
