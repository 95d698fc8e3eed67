"""Batches of any structure: what a model gets of a batch by default, its target, its length, and its torch device."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nft_ext._common.checks import fail

TARGETS = ("labels", "label", "targets", "target")  # keys of a batch that hold the target, never inputs of the model
_KEYWORDS = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def default_forward(model: nn.Module, batch: Any, with_target: bool = True) -> Any:
    """The output of `model` for a batch.

    Args:
        model: a module, or a wrapper around one.
        batch: a mapping: the model gets the keys that its `forward` names, or all if it takes **kwargs; never TARGETS.
            A tuple or list: the model gets all entries but the last, or the only one. A tensor: the model gets it.
        with_target: False: a tuple has no target, so the model gets all of its entries.

    Raises:
        TypeError: a batch of another kind.
        ValueError: no key or no entry for the model.
    """
    if isinstance(batch, Mapping):
        inputs = _named_inputs(model, batch)
        if not inputs:
            rule = "must have a key that the model's forward names, besides labels; give forward= for other keys"
            fail("batch", rule, ", ".join(map(str, batch)) or "no keys")
        return model(**inputs)
    if isinstance(batch, (tuple, list)):
        return model(*(batch[:-1] if with_target and len(batch) > 1 else batch))
    if not isinstance(batch, Tensor):
        rule = "must be a tensor, a tuple or a mapping; give forward= for other kinds"
        fail("batch", rule, type(batch).__name__, TypeError)
    return model(batch)


def target_of(batch: Any) -> Any:
    """The target in a batch: the last entry of a tuple or list, or the one key of TARGETS in a mapping.

    Raises:
        TypeError, ValueError: the batch has no target, or several.
    """
    if isinstance(batch, Mapping):
        found = [name for name in TARGETS if name in batch]
        if len(found) != 1:
            rule = f"must have one of the keys {', '.join(TARGETS)}; give a criterion(output, batch) for other batches"
            fail("batch", rule, ", ".join(found or map(str, batch)) or "no keys")
        return batch[found[0]]
    if not isinstance(batch, (tuple, list)) or len(batch) < 2:
        rule = "must be a tuple or a mapping with a target; give a criterion(output, batch) for other batches"
        fail("batch", rule, type(batch).__name__, TypeError)
    return batch[-1]


def _named_inputs(model: nn.Module, batch: Mapping[Any, Any]) -> dict[str, Any]:
    named = _parameters(_plain(model))
    keys = [key for key in batch if isinstance(key, str) and key not in TARGETS]
    return {key: batch[key] for key in keys if named is None or key in named}


def _parameters(model: nn.Module) -> list[str] | None:
    """Names of the inputs of a forward; None if it takes **kwargs, and so any name."""
    found = inspect.signature(model.forward).parameters.values()
    return None if any(p.kind is p.VAR_KEYWORD for p in found) else [p.name for p in found if p.kind in _KEYWORDS]


def _plain(model: Any) -> Any:
    """The module whose `forward` names the inputs, inside wrappers."""
    while True:
        if (inner := getattr(model, "forward_of", None)) is not None:  # of a method's own wrapper
            model = inner
        elif isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        elif isinstance(model, torch._dynamo.OptimizedModule):
            model = model._orig_mod
        else:
            return model


def callable_or_none(argument: str, value: Any, what: str) -> Callable | None:
    """`value`, a callable or None; `what` shows its call.

    Raises:
        TypeError: anything else.
    """
    if value is not None and not callable(value):
        fail(argument, f"must be a function {what}, or None", repr(value), TypeError)
    return value


def unwrapped(function: Any) -> Any:
    """The function inside functools.partial."""
    while isinstance(function, functools.partial):
        function = function.func
    return function
