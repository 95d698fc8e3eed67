"""Consecutive fused layers in one operator call: made by nft_ext.fuse, for inference on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from nft_ext.nn.fused import FusedConv2d, FusedLayer, FusedLinear
from nft_ext.ops import operators
from nft_ext.ops.functional import Crossbar
from nft_ext.ops.keys import fresh_keys
from nft_ext.ops.operands import is_dense_on_cpu

_operator = operators.ops.noisy_cascade.default
_UNKNOWN = object()
_KINDS = (FusedConv2d, FusedLinear)  # subclasses may compute something else


class Link(NamedTuple):
    """The operands of a layer, by number: the inputs come first, then the layers' results."""

    x: int
    residual: int = -1  # none


class Cascade(nn.Module):
    """Consecutive layers, called as cascade(holders, *inputs). It has no parameters: the holders contain the layers.

    One call of the operator noisy_cascade computes all layers without Python in between. If a layer does not allow
    that, each layer is called. Both ways give the same bits and draw the same random numbers.

    Args:
        paths: per layer, the number of its holder and the names that lead from there to the layer.
        links: one per layer.
        kept: the layers whose results are returned, as a tensor (one layer) or a tuple.
        inputs: the number of inputs.
    """

    def __init__(self, paths: list[tuple], links: list[Link], kept: list[int], inputs: int) -> None:
        super().__init__()
        self.paths, self.links, self.kept, self.inputs = paths, links, [inputs + layer for layer in kept], inputs
        last = {value: at for at, link in enumerate(links) for value in link}
        self._last_uses = [
            [value for value in {*link} if value >= inputs and last[value] == at and value not in self.kept]
            for at, link in enumerate(links)
        ]
        self._wirings: dict[tuple, list[int] | None] = {}

    def forward(self, holders: tuple[nn.Module, ...], *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The kept results.

        Raises:
            RuntimeError, TypeError, ValueError: as the layers.
        """
        layers = []
        for holder, *names in self.paths:
            layer = holders[holder]
            for name in names:
                layer = layer._modules[name]
            layers.append(layer)
        results = None if _only_layer_by_layer() else self._together(layers, inputs)
        if results is None:
            results = self._run(inputs, lambda at, *operands: layers[at](*operands))
        return results[0] if len(results) == 1 else tuple(results)

    def _run(self, inputs: tuple[Tensor, ...], call: Callable[..., Tensor]) -> list[Tensor]:
        """The kept results of call(layer's number, x[, residual]) per layer. Drops values after their last use."""
        values = dict(enumerate(inputs))
        for at, (x, residual) in enumerate(self.links):
            values[self.inputs + at] = call(at, values[x]) if residual < 0 else call(at, values[x], values[residual])
            for value in self._last_uses[at]:
                del values[value]
        return [values[value] for value in self.kept]

    def _together(self, layers: list[nn.Module], inputs: tuple[Tensor, ...]) -> list[Tensor] | None:
        """The results of one operator call, or None if each layer must be called. Then nothing has been computed."""
        if not all(map(is_dense_on_cpu, inputs)):
            return None
        operands = []
        for layer in layers:
            given = cast("FusedLayer", layer).plain_operands() if type(layer) in _KINDS else None
            if given is None:
                return None
            operands.append(given)
        weights, tables, keys, streams, specs, biases, scales, shifts = zip(*operands)
        # Checks run once per combination of layers, settings, chips, shapes and types.
        stamp = (
            *layers,
            *[setting for layer in layers for setting in cast("FusedLayer", layer).settings()],
            *[1 if key is None else key.shape[0] for key in keys],
            *[weight.shape for weight in weights],
            *[fact for x in inputs for fact in (x.shape, x.dtype)],
        )
        try:
            wiring = self._wirings.get(stamp, _UNKNOWN)
        except TypeError:  # a list among the settings, which may change in place
            return None
        if wiring is None:
            return None
        if fresh := sum(key is None for key in keys):
            drawn = iter(fresh_keys(weights[0], fresh))
            keys = [next(drawn) if key is None else key for key in keys]
        if wiring is _UNKNOWN:
            bars = [Crossbar(given[0], None, None, given[1], key, *given[3:5]) for given, key in zip(operands, keys)]
            return self._checked(cast("list[FusedLayer]", layers), inputs, bars, stamp)
        return operators.without_autograd(
            _operator,
            inputs,
            weights,
            biases,
            tables,
            keys,
            streams,
            [number for spec in specs for number in spec],
            scales,
            shifts,
            wiring,
            self.kept,
        )

    def _checked(
        self, layers: list[FusedLayer], inputs: tuple[Tensor, ...], bars: list[Crossbar], stamp: tuple
    ) -> list[Tensor]:
        """The results of one call per layer, with all checks. Stores whether one operator call may do it next time."""
        wiring: list[int] | None = []

        def call(at: int, x: Tensor, residual: Tensor | None = None) -> Tensor:
            nonlocal wiring
            y, static = layers[at].checked(x, residual, bars[at])
            if static is None:
                wiring = None
            elif wiring is not None:
                stride, padding, dilation, groups = static[:-1] or ([1, 1], [0, 0], [1, 1], 1)
                wiring += [*self.links[at], int(layers[at].ends_in_relu), *stride, *padding, *dilation, groups]
            return y

        results = self._run(inputs, call)
        if len(self._wirings) >= 64:
            self._wirings.clear()
        self._wirings[stamp] = wiring
        return results

    def __getstate__(self) -> dict:
        return {**super().__getstate__(), "_wirings": {}}

    def extra_repr(self) -> str:
        return f"{len(self.links)} layers"


def _only_layer_by_layer() -> bool:
    """Whether hooks, compilation, gradients, autocast or transforms need a call per layer."""
    return bool(
        torch.compiler.is_compiling()
        or torch.is_grad_enabled()
        or torch.is_autocast_enabled("cpu")
        or torch._C._are_functorch_transforms_active()
        or _has_any_global_hook()
    )
