"""Finds layers whose weights are on no crossbar, and weights that are read in two places."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import cast

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import UninitializedParameter

from nft_ext._common.checks import fail
from nft_ext.nn.base import NoisyLayer
from nft_ext.nn.candidates import convertible, matrix_parameters, read_by_parents
from nft_ext.nn.crossbars import matrices, only_on_request
from nft_ext.nn.names import named, select

_MULTIPLY = (_ConvNd, nn.Linear, nn.Bilinear, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)
_QUANTIZED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized")
_SHOWN = 6  # names in a warning


def noise_free_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Convolution, linear, recurrent and attention layers that are not noisy, by qualified name.

    Scripted and quantized layers count. Products inside the user's own modules are not found.
    """
    inner = read_by_parents(model)
    return {name: layer for name, (_, layer) in select(model, lambda m: m not in inner and multiplies(m)).items()}


def stay_noise_free(layers: Mapping[str, nn.Module]) -> list[str]:
    """Says of layers, by name, that `convert` does not make them noisy, and what to do; nothing of none."""
    texts = []
    if layers:
        texts.append(f"these layers stay digital: {_listed(map(_described, layers, layers.values()))}")
    known = {name: m for name, m in layers.items() if matrices(m) and not isinstance(m, torch.jit.ScriptModule)}
    if blind := [name for name, m in known.items() if not convertible(m)]:
        texts.append(f"the forwards of these layers do not read their weight as an attribute: {_listed(blind)}")
    if parts := [name for name, m in known.items() if convertible(m)]:
        texts.append(f"attention reads the weights of these layers itself; include the attention: {_listed(parts)}")
    return texts


def shared_weights(model: nn.Module) -> str | None:
    """Names noisy layers whose weight is also a parameter of a digital module, such as a tied embedding."""
    found = []
    noisy = select(model, lambda m: isinstance(m, NoisyLayer))
    inner = read_by_parents(model)
    for name, (_, layer) in noisy.items():
        own = {id(p) for p in matrix_parameters(cast("NoisyLayer", layer))}
        others = [
            _described(other, m)
            for other, _, m in named(model)
            if m not in inner and not isinstance(m, NoisyLayer) and any(id(p) in own for p in m._parameters.values())
        ]
        found += [f"{name} (with {', '.join(others)})"] if others else []
    return f"digital modules share the weights of these noisy layers: {_listed(found)}" if found else None


def check_no_lazy_layers(model: nn.Module) -> None:
    """Refuses lazy Linear and convolution layers that have no shape yet: they would stay digital.

    Raises:
        ValueError: the model has one.
    """
    for name, _, m in named(model):
        if isinstance(m, _MULTIPLY) and any(isinstance(p, UninitializedParameter) for p in m._parameters.values()):
            fail(
                name or "model",
                "must have its shape: run the model once, so that lazy layers get theirs, then convert",
                type(m).__name__,
            )


def multiplies(module: nn.Module) -> bool:
    """Whether a module is a layer of torch that multiplies by weights, without noise."""
    if isinstance(module, NoisyLayer):
        return False
    if isinstance(module, torch.jit.ScriptModule):
        kind = getattr(nn, getattr(module, "original_name", ""), None)
        return isinstance(kind, type) and issubclass(kind, _MULTIPLY)
    return (bool(matrices(module)) and not only_on_request(module)) or is_quantized(module)


def is_quantized(module: nn.Module) -> bool:
    """Whether a module is a quantized layer of torch. Its weight is no parameter."""
    return type(module).__module__.startswith(_QUANTIZED) and hasattr(module, "weight")


def unregistered(model: nn.Module, wanted: Callable[[nn.Module], bool]) -> Iterator[str]:
    """Names of attributes, plain lists, tuples and dicts for example, whose `wanted` modules are in no `modules()`."""
    for name, hidden in unregistered_modules(model):
        if any(wanted(m) for module in hidden for m in module.modules()):
            yield name


def unregistered_modules(model: nn.Module) -> Iterator[tuple[str, list[nn.Module]]]:
    """(name of an attribute, its modules that are in no `modules()`), plain lists, tuples and dicts for example."""
    modules = named(model)
    known = {id(m) for _, _, m in modules}
    for name, _, module in modules:
        for key, value in vars(module).items():
            held = list(value.values()) if isinstance(value, dict) else value
            items = held if isinstance(held, (list, tuple, set)) else (held,)
            hidden = [m for m in items if isinstance(m, nn.Module) and id(m) not in known]
            if hidden:
                yield f"{name}.{key}" if name else key, hidden


def _described(name: str, module: nn.Module) -> str:
    kind = type(module).__name__
    if isinstance(module, torch.jit.ScriptModule):
        kind = f"scripted {module.original_name}"
    elif type(module).__module__.startswith(_QUANTIZED):
        kind = f"quantized {kind}"
    elif getattr(nn, kind, type(module)) is not type(module):
        kind = f"{type(module).__module__}.{kind}"  # another class of that name
    return f"{name or 'model'} ({kind})"


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
