"""Weights that a module computes from other tensors before it reads them: parametrized, normed and pruned weights.

A crossbar holds the effective weight. The gradient goes straight through to the tensors that it is made of.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm, remove_spectral_norm
from torch.nn.utils.weight_norm import WeightNorm, remove_weight_norm

# What torch's functions leave on a module: a hook that writes the weight before each forward.
_REMOVE: dict[type, Callable[[nn.Module, str], Any]] = {
    WeightNorm: remove_weight_norm,
    SpectralNorm: remove_spectral_norm,
    prune.BasePruningMethod: prune.remove,
}
_PARTS = ("_orig", "_g", "_v")


def is_parameter(module: nn.Module, name: str) -> bool:
    """Whether the weight is a parameter of the module itself."""
    return module._parameters.get(name) is not None


def is_parametrized(module: nn.Module, name: str) -> bool:
    """Whether torch.nn.utils.parametrize makes the weight."""
    return parametrize.is_parametrized(module, name)


def hook_of(module: nn.Module, name: str) -> Any:
    """The hook of weight norm, spectral norm or pruning that makes the weight; None without one."""
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, tuple(_REMOVE)) and name in (getattr(hook, "name", None), vars(hook).get("_tensor_name")):
            return hook
    return None


def is_known(module: nn.Module, name: str) -> bool:
    """Whether the weight is a parameter, or made in a way that this file knows."""
    return is_parameter(module, name) or is_parametrized(module, name) or hook_of(module, name) is not None


def refresh(module: nn.Module, name: str) -> None:
    """Writes a weight that a hook makes, as the next forward would; parameters may have changed since the last one."""
    hook = hook_of(module, name)
    if isinstance(hook, SpectralNorm):
        setattr(module, name, hook.compute_weight(module, do_power_iteration=False))
    elif hook is not None:
        hook(module, None)


def fix(module: nn.Module, name: str, weight: Tensor) -> None:
    """Makes `weight` the module's own parameter, in the type of the present one and in place of what computes it."""
    with torch.no_grad():
        past = getattr(module, name)
    trained = past.requires_grad if is_parameter(module, name) else True
    if is_parametrized(module, name):
        with torch.no_grad():
            parametrize.remove_parametrizations(module, name)
    elif (hook := hook_of(module, name)) is not None:
        remove = next(remove for kind, remove in _REMOVE.items() if isinstance(hook, kind))
        with torch.no_grad():
            remove(module, name)
    if name in module.__dict__:
        delattr(module, name)
    setattr(module, name, nn.Parameter(weight.to(past.dtype), requires_grad=trained))


def made_tensors(module: nn.Module) -> list[Tensor]:
    """Weights that hooks have written as plain attributes. copy.deepcopy refuses those with a gradient."""
    hooks = [h for h in module._forward_pre_hooks.values() if isinstance(h, tuple(_REMOVE))]
    names = {getattr(hook, "name", None) or vars(hook).get("_tensor_name") for hook in hooks}
    return [value for name in names if isinstance(value := module.__dict__.get(str(name)), Tensor)]


def part_names(name: str) -> set[str]:
    """Names of the parameters of which a hook may make the weight called `name`."""
    return {name + ending for ending in _PARTS}
