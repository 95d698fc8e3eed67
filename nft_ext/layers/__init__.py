"""Drop-in noisy layers."""

from .base import NoisyLayer, noisy_layers
from .conv import NoisyConv2d
from .linear import NoisyLinear

__all__ = ["NoisyConv2d", "NoisyLayer", "NoisyLinear", "noisy_layers"]
