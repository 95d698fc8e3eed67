"""Batches of any structure: what a model gets of a batch by default, its target, and its number of examples."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from nft_ext._common.checks import fail
from nft_ext.nn.chip_inputs import mapped, tensors_of
from nft_ext.nn.names import inside_wrappers

TARGETS = ("labels", "label", "targets", "target")  # keys of a batch that hold the target, never inputs of the model
_KEYWORDS = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def default_forward(model: Any, batch: Any, with_target: bool = True) -> Any:
    """The output of `model` for a batch, by `inputs_of`."""
    args, kwargs = inputs_of(model, batch, with_target)
    return model(*args, **kwargs)


def inputs_of(model: Any, batch: Any, with_target: bool = True) -> tuple[tuple, dict[str, Any]]:
    """The arguments of a model's forward in a batch, without the target.

    Floating-point tensors are cast to the type of the model's weights.

    Args:
        model: a module, a wrapper around one, or an object whose `forward_of` is the module that it calls.
        batch: a mapping: the model gets the keys that its `forward` names, or all if it takes **kwargs; never TARGETS.
            A tuple or list: the model gets all entries but the last, or the only one. A tensor: the model gets it.
        with_target: False: a tuple has no target, so the model gets all of its entries.

    Returns:
        Positional and keyword arguments.

    Raises:
        TypeError: a batch of another kind.
        ValueError: a mapping without a key for the model, or without one that its forward needs.
    """
    model = _called(model)
    if isinstance(batch, Mapping):
        given = (), _named_inputs(model, batch)
    elif isinstance(batch, (tuple, list)):
        given = tuple(batch[:-1] if with_target and len(batch) > 1 else batch), {}
    elif isinstance(batch, Tensor):
        given = (batch,), {}
    else:
        rule = "must be a tensor, a tuple or a mapping; give forward= for other kinds"
        fail("batch", rule, type(batch).__name__, TypeError)
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)

    def cast(tensor: Tensor) -> Tensor:
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    return mapped(cast, given[0]), mapped(cast, given[1])


def _called(model: Any) -> nn.Module:
    """The module whose `forward` names the inputs, inside wrappers and objects that pass them on."""
    while (inner := inside_wrappers(getattr(model, "forward_of", model))) is not model:
        model = inner
    return model


def _named_inputs(model: nn.Module, batch: Mapping[Any, Any]) -> dict[str, Any]:
    parameters = inspect.signature(model.forward).parameters
    named = {name: p for name, p in parameters.items() if p.kind in _KEYWORDS}
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    keys = [key for key in batch if isinstance(key, str) and key not in TARGETS]
    chosen = {key: batch[key] for key in keys if takes_all or key in named}
    missing = [name for name, p in named.items() if p.default is p.empty and name not in chosen]
    if missing or not chosen:
        lacks = f"lacks {', '.join(missing)}" if missing else f"the forward names {', '.join(named) or 'none'}"
        rule = "must have the keys that the model's forward names, besides labels; give forward= for other keys"
        fail("batch", rule, f"keys {', '.join(map(str, batch)) or 'none'}; {lacks}")
    return chosen


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


def size_of(batch: Any) -> int | None:
    """Number of examples: the dim 0 that all tensors of the batch share. None if they share none."""
    sizes = {len(tensor) if tensor.dim() else None for tensor in tensors_of(batch)}
    return sizes.pop() if len(sizes) == 1 else None
