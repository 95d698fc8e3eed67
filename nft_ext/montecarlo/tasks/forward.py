"""The forward of a model on a batch: the function that the user gives, or a choice by the structure of the batch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from nft_ext._common.checks import fail
from nft_ext.metrics.temperature import Tempered
from nft_ext.montecarlo.tasks.batches import LABELS
from nft_ext.nn.chip_inputs import mapped

ForwardFunction = Callable[[nn.Module, Any], Any]  # forward(model, batch) -> output


def checked_forward(forward: Any) -> ForwardFunction | None:
    """`forward`, a function or None.

    Raises:
        TypeError: anything else.
    """
    if forward is not None and (not callable(forward) or isinstance(forward, nn.Module)):
        rule = "must be a function forward(model, batch) -> output, or None"
        fail("forward", rule, type(forward).__name__, kind=TypeError)
    return forward


def inputs_of(model: nn.Module, batch: Any) -> tuple[tuple, dict[str, Any]]:
    """The arguments of the model's forward in a batch, without labels.

    Of a mapping: the entries that the forward names; all of them if it takes **kwargs. Never those called labels,
    label, targets or target. Of a tuple or list: all entries but the last one, or the only one. Floating-point tensors
    are cast to the type of the model's weights.

    Raises:
        ValueError: the batch lacks arguments of the forward.
    """
    if isinstance(batch, Mapping):
        names = {name: value for name, value in batch.items() if name not in LABELS}
        given = (), _named(model, names)
    elif isinstance(batch, (tuple, list)):
        given = tuple(batch[:-1] if len(batch) > 1 else batch), {}
    else:
        given = (batch,), {}
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)

    def cast(tensor: Tensor) -> Tensor:
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    return mapped(cast, given[0]), mapped(cast, given[1])


def _named(model: nn.Module, entries: dict[str, Any]) -> dict[str, Any]:
    parameters = inspect.signature(_inner(model).forward).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        chosen = entries
    else:
        chosen = {name: value for name, value in entries.items() if name in parameters}
    plain = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    missing = [
        name for name, p in parameters.items() if p.kind in plain and p.default is p.empty and name not in chosen
    ]
    if not chosen or missing:
        wanted = f"lacks {', '.join(missing)}" if missing else f"names only {', '.join(parameters)}"
        fail(
            "data",
            "must have the keys that the model's forward names; else give forward=lambda model, batch: ...",
            f"keys {', '.join(map(str, entries)) or 'none'}; the batch {wanted}",
        )
    return chosen


def _inner(model: nn.Module) -> nn.Module:
    """The module whose forward names the arguments: without wrappers that pass all of them on."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = model.module
        elif isinstance(model, Tempered):
            inner = model.model
        if not isinstance(inner, nn.Module):
            return model
        model = inner
