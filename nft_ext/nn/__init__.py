"""Drop-in noisy layers, their contexts, conversion and fusion."""

from nft_ext.nn.base import NoisyLayer, check_noisy, noisy_layers
from nft_ext.nn.conv import NoisyConv2d
from nft_ext.nn.linear import NoisyLinear

__all__ = ["NoisyConv2d", "NoisyLayer", "NoisyLinear", "check_noisy", "noisy_layers"]
