"""The modules of a model that `convert` can make noisy."""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterator

import torch
from torch import nn

from nft_ext.nn.base import NoisyLayer
from nft_ext.nn.crossbars import Matrix, matrices, may_not_read, read_by_parent
from nft_ext.nn.names import named, select
from nft_ext.nn.weight_level import PlacedMatrix, WeightLevelLayer, qualified

OPERATORS = (nn.Conv2d, nn.Linear)  # of exactly these types; others run their own forward
# What a forward may call in place of reading the weight itself.
_PASSED_ON = {"super", "__class__", "_conv_forward", "_flat_weights"}
_STATE = {
    *("nvm", "name", "stream", "noise_enabled", "shares_codes", "scaled", "injectable", "injecting"),
    *("_last", "_spec", "_table", "_key", "_programmed", "_met_as", "_changes", "_owner", "_entry"),
    *("_name", "_placed", "_swapped"),
}


def candidates(model: nn.Module) -> dict[str, tuple[str, nn.Module]]:
    """name -> (path, module) of the layers that are noisy or can become so."""
    inner = read_by_parents(model, noisy=False)
    return select(model, lambda m: isinstance(m, NoisyLayer) or (m not in inner and bool(convertible(m))))


def read_by_parents(model: nn.Module, noisy: bool = True) -> set[nn.Module]:
    """Modules whose weights their parents read: these are matrices of the parents.

    Args:
        model: plain or noisy.
        noisy: whether only noisy parents count.
    """
    parents = [m for _, _, m in named(model) if isinstance(m, NoisyLayer) or not noisy]
    return {child for m in parents for name in read_by_parent(m) if (child := m._modules.get(name)) is not None}


def convertible(module: nn.Module) -> list[Matrix]:
    """The matrices of a plain module that `convert` can put on crossbars: those that its forward reads."""
    if isinstance(module, (NoisyLayer, torch.jit.ScriptModule)):
        return []
    found = matrices(module)
    if not may_not_read(type(module)):
        return found
    return found if all(_reads(type(module), m.parameter) for m in found) else []


def has_operator(layer: nn.Module) -> bool:
    """Whether a layer, plain or noisy, is served by an operator that programs and multiplies in one call."""
    if isinstance(layer, NoisyLayer):
        return layer.one_operator
    return type(layer) in OPERATORS and layer._parameters.get("weight") is not None and "bias" in layer._parameters


def matrix_names(name: str, layer: nn.Module) -> list[str]:
    """The names of the matrices of a layer, plain or noisy, which decide their streams."""
    if has_operator(layer):
        return [name]
    if isinstance(layer, NoisyLayer):
        return list(layer.matrices_by_name(name))
    return [qualified(name, matrix.parameter) for matrix in matrices(layer)]


def parameter_of(matrix: NoisyLayer | PlacedMatrix) -> str:
    """The parameter's name in the module."""
    return "weight" if isinstance(matrix, NoisyLayer) else matrix.parameter


def matrix_parameters(layer: NoisyLayer) -> list[nn.Parameter]:
    """The parameters of a noisy layer that are its matrices; not those of which a weight is made."""
    found = []
    for matrix in layer.matrices():
        path, _, name = parameter_of(matrix).rpartition(".")
        if (parameter := layer.get_submodule(path)._parameters.get(name)) is not None:
            found.append(parameter)
    return found


def taken_names(module: nn.Module) -> list[str]:
    """Attributes of a plain module that a noisy layer needs for itself."""
    own = {*vars(module), *module._parameters, *module._buffers, *module._modules}
    for kind in type(module).__mro__[: -len(nn.Module.__mro__)]:
        own |= set(vars(kind))
    ours = _STATE.union(*(vars(kind) for kind in (NoisyLayer, WeightLevelLayer))) - set(dir(nn.Module))
    return sorted(name for name in own & ours if not name.startswith("__"))


def _reads(kind: type, parameter: str) -> bool:
    """Whether the methods of a class mention a weight; a class of torch, or one that only inherits, does."""
    for base in kind.__mro__:
        if base.__module__.startswith("torch.nn.modules.") or base is nn.Module:
            return True
        methods = (
            [value for method in vars(base).values() if isinstance(value := inspect.unwrap(method), types.FunctionType)]
            if "forward" in vars(base)
            else []
        )
        if "forward" in vars(base):
            names = {name for method in methods for name in _names(method.__code__)}
            return bool(names & {parameter.split(".")[0], *_PASSED_ON}) or not methods
    return True


def _names(code: types.CodeType) -> Iterator[str]:
    yield from (*code.co_names, *code.co_freevars, *(c for c in code.co_consts if isinstance(c, str)))
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            yield from _names(inner)
