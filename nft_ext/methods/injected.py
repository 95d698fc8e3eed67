"""Noisy layers that can compute with weight noise of a method's own, in plain PyTorch, in place of the device's.

While a loss is taken inside `injecting`, such a layer uses `W_d + max|W| * noise(z)`; everywhere else (selection,
evaluation) it is the ordinary noisy layer it derives from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from nft_ext._common.checks import fail
from nft_ext.device import NVMDevice
from nft_ext.nn import NoisyConv2d, NoisyLayer, NoisyLinear, noisy_layers
from nft_ext.ops.functional import program_weights
from nft_ext.ops.keys import fresh_key

# Noise in units of max|W| from standard normals: z [*weight.shape] -> [*weight.shape].
Noise = Callable[[Tensor], Tensor]

_NORMAL = NVMDevice(weight_bits=1, device_bits=1, sigma=1.0, relative_to="spacing")  # programs 1 to 1 + z


class _Injected(NoisyLayer):
    noise: Noise
    injecting = False

    def injected_weight(self) -> Tensor:
        """`W_d + max|W| * noise(z)`, [*weight.shape], z from the key in force; gradients pass straight through to W.

        Raises:
            ValueError: several chips in one pass.
        """
        weight, key = self.weight, self._key
        if key is None:
            key = fresh_key(weight)
        if key.shape[0] != 1:
            fail("key", "must hold one chip where a method injects noise of its own", list(key.shape))
        with torch.no_grad():
            z = program_weights(torch.ones_like(weight), _NORMAL, stream=self.stream, key=key)[0] - 1.0
            target = program_weights(weight, self.nvm, stream=self.stream, key=key, enabled=False)[0]
            shift = target + weight.abs().amax() * self.noise(z) - weight
        return weight + shift.to(weight.dtype)


class InjectedConv2d(_Injected, NoisyConv2d):
    """NoisyConv2d, see the module."""

    def forward(self, x: Tensor) -> Tensor:
        if not (self.injecting and self.noise_enabled):
            return super().forward(x)
        return self._conv_forward(x, self.injected_weight(), self.bias)


class InjectedLinear(_Injected, NoisyLinear):
    """NoisyLinear, see the module."""

    def forward(self, x: Tensor) -> Tensor:
        if not (self.injecting and self.noise_enabled):
            return super().forward(x)
        return linear(x, self.injected_weight(), self.bias)


_INJECTED = {NoisyConv2d: InjectedConv2d, NoisyLinear: InjectedLinear}
_ORDINARY = {injected: ordinary for ordinary, injected in _INJECTED.items()}


def with_injection(model: nn.Module, noise: Noise) -> nn.Module:
    """`model` itself, its noisy layers able to inject `noise`."""
    for layer in noisy_layers(model).values():
        layer.__class__ = _INJECTED[type(layer)]
        layer.noise = noise
    return model


def without_injection(model: nn.Module) -> nn.Module:
    """`model` itself, its layers ordinary noisy ones again."""
    for layer in _injected_layers(model):
        del layer.noise
        layer.__class__ = _ORDINARY[type(layer)]
    return model


@contextmanager
def injecting(model: nn.Module) -> Iterator[None]:
    """Inside, forwards run with the injected noise."""
    layers = _injected_layers(model)
    for layer in layers:
        layer.injecting = True
    try:
        yield
    finally:
        for layer in layers:
            del layer.injecting


def _injected_layers(model: nn.Module) -> list[_Injected]:
    return [layer for layer in noisy_layers(model).values() if isinstance(layer, _Injected)]
