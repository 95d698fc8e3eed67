"""Methods that were replaced on an instance: they may bypass the noisy forward, or run another model's layers.

accelerate's hooks, `layer.forward = torch.compile(layer.forward)` and patches by hand do this.
"""

from __future__ import annotations

import copy
import functools
import types
from typing import Any

from torch import nn

from nft_ext._common.checks import fail
from nft_ext.nn.effective import made_tensors
from nft_ext.nn.names import named

_METHODS = ("forward", "_conv_forward", "_call_impl")  # what a call of a Linear or Conv2d runs
_DEPTH = 6  # of functions within functions


def replaced_method(layer: nn.Module) -> str | None:
    """The name of a method that was replaced on this instance by another than its class's own; None without any."""
    own = layer.__dict__
    for name in _METHODS:
        if name in own and not _is_own(layer, name):
            return name
    return None


def drop_own_methods(layer: nn.Module) -> None:
    """Removes the class's own methods from the instance. accelerate leaves them there when its hooks are removed."""
    for name in _METHODS:
        if name in vars(layer) and _is_own(layer, name):
            del layer.__dict__[name]


def _is_own(layer: nn.Module, name: str) -> bool:
    value = vars(layer)[name]
    return getattr(value, "__self__", None) is layer and getattr(value, "__func__", None) is getattr(type(layer), name)


def copied(model: nn.Module) -> nn.Module:
    """A deep copy of `model`, all of whose forwards run the copy's own layers.

    Raises:
        ValueError: torch cannot copy the model, or a forward that was replaced on an instance would still run the
            original's layers.
    """
    # What a hook makes of the parameters before each forward is a tensor with a gradient, which deepcopy refuses.
    memo = {id(t): t.detach().clone() for _, _, m in named(model) for t in made_tensors(m)}
    try:
        result = copy.deepcopy(model, memo)
    except Exception as error:  # torch raises many kinds
        reason = next(iter(str(error).splitlines()), "")
        raise ValueError(
            "model: must be one that copy.deepcopy can copy; undo pruning (torch.nn.utils.prune.remove) and other "
            f"reparametrizations, and wrap with FSDP later. Got {type(error).__name__}: {reason}"
        ) from error
    originals = {id(module) for _, _, module in named(model)}
    for (name, _, old), (_, _, new) in zip(named(model), named(result)):
        forward = vars(new).get("forward")
        if forward is None or not any(True for _ in old.parameters()):
            continue
        # A function gets no module, so it can call the children only of the original.
        shared = forward is vars(old)["forward"] and isinstance(forward, types.FunctionType) and bool(old._modules)
        if shared or _reaches(forward, originals, set()):
            fail(
                name or "model",
                "must not have a forward that was replaced by a function, because a copy would run the original's "
                "layers. Remove it (del module.forward), call this, then replace it again",
                getattr(forward, "__qualname__", type(forward).__name__),
            )
    return result


def _reaches(value: Any, modules: set[int], seen: set[int], depth: int = 0) -> bool:
    """Whether a function, method or partial holds one of `modules`, given by their ids."""
    if isinstance(value, nn.Module):
        return id(value) in modules
    if depth > _DEPTH or id(value) in seen:
        return False
    seen.add(id(value))
    held: list[Any] = []
    if isinstance(value, types.MethodType):
        held = [value.__self__, value.__func__]
    elif isinstance(value, functools.partial):
        held = [value.func, *value.args, *value.keywords.values()]
    elif isinstance(value, types.FunctionType):
        cells = (cell.cell_contents for cell in value.__closure__ or () if cell != types.CellType())
        names = (value.__globals__.get(name) for name in value.__code__.co_names)
        held = [*cells, *(value.__defaults__ or ()), *names, getattr(value, "__wrapped__", None)]
    elif isinstance(value, (list, tuple)):
        held = list(value)
    return any(_reaches(item, modules, seen, depth + 1) for item in held)
