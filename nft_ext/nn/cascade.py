"""Fused layers that feed each other, in one operator call: made by nft_ext.fuse, for inference on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from nft_ext.nn.fused import FusedLayer
from nft_ext.ops import operators
from nft_ext.ops.functional import Crossbar
from nft_ext.ops.keys import fresh_keys
from nft_ext.ops.operands import is_dense_on_cpu

_operator = operators.ops.noisy_cascade.default
_UNKNOWN = object()


class Link(NamedTuple):
    """Whence a layer takes its operands. Values are numbered: the inputs first, then the layers' results."""

    x: int
    residual: int = -1  # none


class Cascade(nn.Module):
    """Layers fed by those before them; without parameters: called with modules that hold the layers, as
    cascade(holders, *inputs).

    Where the layers ask for nothing else it is one call of the operator noisy_cascade, which spares Python and torch's
    dispatcher between them, else a call a layer. Results and random numbers are the same bits either way.

    Args:
        paths: one a layer: the number of its holder, then the names that lead from there to the layer.
        links: one a layer.
        kept: the layers whose results are returned: the one's, or a tuple of several.
        inputs: how many inputs there are.
    """

    def __init__(self, paths: list[tuple], links: list[Link], kept: list[int], inputs: int) -> None:
        super().__init__()
        self.paths, self.links, self.kept, self.inputs = paths, links, [inputs + layer for layer in kept], inputs
        last = {value: at for at, link in enumerate(links) for value in link}
        self._dropped = [
            [value for value in {*link} if value >= inputs and last[value] == at and value not in self.kept]
            for at, link in enumerate(links)
        ]
        self._plans: dict[tuple, list[int] | None] = {}

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
        """The kept results of call(layer's number, x[, residual]), layer after layer; no value lives longer than it is
        needed.
        """
        values = dict(enumerate(inputs))
        for at, (x, residual) in enumerate(self.links):
            values[self.inputs + at] = call(at, values[x]) if residual < 0 else call(at, values[x], values[residual])
            for value in self._dropped[at]:
                del values[value]
        return [values[value] for value in self.kept]

    def _together(self, layers: list[nn.Module], inputs: tuple[Tensor, ...]) -> list[Tensor] | None:
        """The results by one operator call, or None where layers have to be called: nothing has been drawn or computed
        then.
        """
        if not all(map(is_dense_on_cpu, inputs)):
            return None
        operands = []
        for layer in layers:
            given = layer.plain_operands() if isinstance(layer, FusedLayer) else None
            if given is None:
                return None
            operands.append(given)
        weights, codes, steps, tables, keys, streams, specs, biases, scales, shifts = zip(*operands)
        # Checked once for all calls with the same layers, chips, shapes and types.
        stamp = (
            *layers,
            *[1 if key is None else key.shape[0] for key in keys],
            *[weight.shape for weight in weights],
            *[fact for x in inputs for fact in (x.shape, x.dtype)],
        )
        plan = self._plans.get(stamp, _UNKNOWN)
        if plan is None:
            return None
        if fresh := sum(key is None for key in keys):
            drawn = iter(fresh_keys(weights[0], fresh))
            keys = [next(drawn) if key is None else key for key in keys]
        if plan is _UNKNOWN:
            bars = [Crossbar(*given[:4], key, *given[5:7]) for given, key in zip(operands, keys)]
            return self._checked(layers, inputs, bars, stamp)
        return operators.past_autograd(
            _operator,
            inputs,
            weights,
            biases,
            codes,
            steps,
            tables,
            keys,
            streams,
            [number for spec in specs for number in spec],
            scales,
            shifts,
            plan,
            self.kept,
        )

    def _checked(
        self, layers: list[FusedLayer], inputs: tuple[Tensor, ...], bars: list[Crossbar], stamp: tuple
    ) -> list[Tensor]:
        """The results with all checks, layer after layer; whether one operator call does the same next time is noted."""
        plan: list[int] | None = []

        def call(at: int, x: Tensor, residual: Tensor | None = None) -> Tensor:
            nonlocal plan
            y, static = layers[at].checked(x, residual, bars[at])
            if static is None:
                plan = None
            elif plan is not None:
                stride, padding, dilation, groups = static[:-1] or ([1, 1], [0, 0], [1, 1], 1)
                plan += [*self.links[at], int(layers[at].ends_in_relu), *stride, *padding, *dilation, groups]
            return y

        results = self._run(inputs, call)
        if len(self._plans) >= 64:
            self._plans.clear()
        self._plans[stamp] = plan
        return results

    def __getstate__(self) -> dict:
        return {**super().__getstate__(), "_plans": {}}

    def extra_repr(self) -> str:
        return f"{len(self.links)} layers"


def _only_layer_by_layer() -> bool:
    """Whether somebody looks at single layers or operators, or wants of them what the operator does not offer."""
    return (
        torch.compiler.is_compiling()
        or torch.is_grad_enabled()
        or torch.is_autocast_enabled("cpu")
        or torch._C._are_functorch_transforms_active()
        or _has_any_global_hook()
    )
