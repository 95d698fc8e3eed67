"""Noisy layers that can use a method's own weight noise instead of the device's, in plain PyTorch.

Inside `injecting`, such a layer computes with `W_d + max|W| * noise(z)`, max|W| over the weights that share a step.
Elsewhere, as in validation and evaluation, it is an ordinary noisy layer.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from nft_ext._common.checks import fail
from nft_ext.device import NVMDevice
from nft_ext.nn import NoisyConv2d, NoisyLayer, NoisyLinear, noisy_layers
from nft_ext.nn.weight_level import WeightLevelLayer
from nft_ext.ops.functional import program_weights
from nft_ext.ops.keys import fresh_key

# Standard normals z [*weight.shape] -> noise in units of max|W| [*weight.shape].
Noise = Callable[[Tensor], Tensor]

_NORMAL = NVMDevice(weight_bits=1, device_bits=1, sigma=1.0, relative_to="spacing")  # programs a weight of 1 to 1 + z


class _Injected(NoisyLayer):
    noise: Noise
    injecting = False

    def noise_state(self) -> tuple:
        return *super().noise_state(), self.injecting

    def set_noise_state(self, state: tuple) -> None:
        *rest, self.injecting = state
        super().set_noise_state(tuple(rest))

    def injected_weight(self) -> Tensor:
        """`W_d + max|W| * noise(z)`, [*weight.shape], with z from the layer's key. Its gradient is W's.

        Raises:
            ValueError: the key holds several chips.
            RuntimeError: a forward in another thread than that of the layer's contexts.
        """
        weight, key = self.weight, self._key
        if not torch.compiler.is_compiling():
            if self._owner is not None:
                self.check_caller()
            self._note_forward()
        if key is None:
            key = fresh_key(weight)
        return _injected(self.noise, weight, self.nvm, self.stream, key)


def _injected(
    noise: Noise,
    weight: Tensor,
    nvm: NVMDevice,
    stream: int,
    key: Tensor,
    layout: str = "oi",
    groups: int = 1,
) -> Tensor:
    if key.shape[0] != 1:
        fail("key", "must hold one chip, because the method injects its own noise", list(key.shape))
    with torch.no_grad():
        z = program_weights(torch.ones_like(weight), _NORMAL, stream=stream, key=key)[0] - 1.0
        full = _full_range(nvm.scale, nvm.array_rows)
        target = program_weights(weight, nvm, key=key, enabled=False, layout=layout, groups=groups)[0]
        largest = program_weights(weight, full, key=key, layout=layout, groups=groups)[0].abs()
        shift = target + largest * noise(z) - weight
    return weight + shift.to(weight.dtype)


@functools.lru_cache(maxsize=64)
def _full_range(scale: str, array_rows: int | None) -> NVMDevice:
    """A device that programs every weight to the largest |W| that shares its step, with the weight's sign."""
    return NVMDevice(
        weight_bits=1,
        device_bits=1,
        sigma=0.0,
        level_mean=(1.0, 1.0),
        level_std=(0.0, 0.0),
        scale=scale,
        array_rows=array_rows,
    )


class InjectedConv2d(_Injected, NoisyConv2d):
    """NoisyConv2d that can inject noise."""

    def forward(self, x: Tensor) -> Tensor:
        if not (self.injecting and self.noise_enabled):
            return super().forward(x)
        return self._conv_forward(x, self.injected_weight(), self.bias)


class InjectedLinear(_Injected, NoisyLinear):
    """NoisyLinear that can inject noise."""

    def forward(self, x: Tensor) -> Tensor:
        if not (self.injecting and self.noise_enabled):
            return super().forward(x)
        return linear(x, self.injected_weight(), self.bias)


_INJECTED = {NoisyConv2d: InjectedConv2d, NoisyLinear: InjectedLinear}
_ORDINARY = {injected: ordinary for ordinary, injected in _INJECTED.items()}


def with_injection(model: nn.Module, noise: Noise) -> nn.Module:
    """`model` itself. Its noisy layers can now inject `noise`."""
    layers = noisy_layers(model)
    for name, layer in layers.items():
        if layer.nvm.has_converters:
            rule = "must have no input_bits and output_bits for a method that injects its own noise into the weight"
            fail(name or "model", rule, str(layer.nvm))
    for layer in layers.values():
        if isinstance(layer, WeightLevelLayer):
            layer.injectable = functools.partial(_injected, noise)
        else:
            layer.__class__ = _INJECTED[type(layer)]
            cast(_Injected, layer).noise = noise
    return model


def without_injection(model: nn.Module) -> nn.Module:
    """`model` itself, with ordinary noisy layers again."""
    for layer in _injected_layers(model):
        if isinstance(layer, WeightLevelLayer):
            layer.injectable = None
        else:
            del layer.noise
            layer.__class__ = _ORDINARY[type(layer)]
    return model


@contextmanager
def injecting(model: nn.Module) -> Iterator[None]:
    """Inside, forwards use the injected noise."""
    layers = _injected_layers(model)
    for layer in layers:
        layer.injecting = True
    try:
        yield
    finally:
        for layer in layers:
            layer.injecting = False


def _injected_layers(model: nn.Module) -> list[_Injected | WeightLevelLayer]:
    layers = noisy_layers(model).values()
    return [
        layer
        for layer in layers
        if isinstance(layer, _Injected) or (isinstance(layer, WeightLevelLayer) and layer.injectable is not None)
    ]
