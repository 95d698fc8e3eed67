"""Layers under other conditions for a while: another device, noise off, no quantizer.

Without the quantizer a weight is W + (W_p - W_d): the float weight with the deviation that its devices have. The
deviation is that of the code, as with the quantizer, on the same normals.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nft_ext.device import NVMDevice
from nft_ext.nn.base import NoisyLayer
from nft_ext.nn.programmed import program_layers
from nft_ext.nn.scopes import changed
from nft_ext.ops.keys import noise_key
from nft_ext.ops.operands import autocast_dtype


class Condition(NamedTuple):
    """How one layer is evaluated.

    Attributes:
        nvm: the device model.
        noisy: whether the noise is on.
        quantized: whether the weight is quantized. If not, the layer runs inside `chips`, without gradients.
    """

    nvm: NVMDevice
    noisy: bool = True
    quantized: bool = True


@contextlib.contextmanager
def under(model: nn.Module, conditions: Mapping[NoisyLayer, Condition]) -> Iterator[None]:
    """Context in which layers have other devices and conditions. `layer.nvm` names the device in force.

    Raises:
        RuntimeError: another thread is inside a context of one of the layers.
    """
    layers = list(conditions)
    before = {layer: layer.nvm for layer in layers}
    float_layers = [layer for layer in layers if not conditions[layer].quantized]

    def change(layer: NoisyLayer) -> None:
        layer.nvm = conditions[layer].nvm
        layer.set_enabled(conditions[layer].noisy)
        layer.set_device(layer.nvm)

    try:
        with changed(model, layers, change):
            for layer, rounding in zip(float_layers, _rounding(model, float_layers)):
                layer.__dict__.update(unquantized=True, _rounding=rounding)
            yield
    finally:
        for layer, nvm in before.items():
            layer.nvm = nvm
            for name in ("unquantized", "_rounding"):
                layer.__dict__.pop(name, None)


@torch.no_grad()
def _rounding(model: nn.Module, layers: list[NoisyLayer]) -> list[list[Tensor]]:
    """W - W_d of every matrix of every layer, float32."""
    keys = {layer: noise_key(device=layer.here) for layer in layers}

    def quiet(layer: NoisyLayer) -> None:
        layer.set_key(keys[layer])
        layer.set_enabled(False)

    with changed(model, layers, quiet):
        quantized = program_layers(layers, torch.float32)
    pairs = zip(layers, quantized, strict=True)
    return [[w.float() - w_d[0] for w, w_d in zip(layer.master_weights(), held, strict=True)] for layer, held in pairs]


@torch.no_grad()
def hold_unquantized(layers: list[NoisyLayer]) -> None:
    """Stores W + (W_p - W_d) of the present chips, or W where the noise is off, for later forwards."""
    noisy = [layer for layer in layers if layer.noise_enabled]
    for layer, held in zip(noisy, program_layers(noisy, torch.float32), strict=True):
        roundings = layer.__dict__["_rounding"]
        _hold(layer, [w.add_(r) for w, r in zip(held, roundings, strict=True)])
    for layer in layers:
        if not layer.noise_enabled and layer._key is not None:
            # A copy: the weight itself, read by a product, would count as read past its layer (nft_ext/nn/observed.py).
            weights = [weight.detach().float().clone() for weight in layer.master_weights()]
            _hold(layer, [weight.expand(layer._key.shape[0], *weight.shape) for weight in weights])


def _hold(layer: NoisyLayer, weights: list[Tensor]) -> None:
    """Stores weights [S, *shape], rounded once where autocast will round them in the layer's operator."""
    dtype = autocast_dtype(layer.here) if layer.one_operator else None
    layer.hold_programmed([weight.to(dtype or torch.float32) for weight in weights])
