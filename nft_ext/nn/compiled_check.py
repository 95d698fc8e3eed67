"""The check of a compiled model on several chips: an operator of its graph, which runs the model in eager mode once.

A graph cannot run the model chip by chip, so a compiled model that mixes chips is refused.
"""

from __future__ import annotations

import ast
import itertools
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from nft_ext._common.checks import fail
from nft_ext.nn import chip_check
from nft_ext.nn.base import NoisyLayer
from nft_ext.nn.chip_inputs import of_chips
from nft_ext.nn.structure import modules_of

_count = itertools.count(1)
_numbers: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()
_models: weakref.WeakValueDictionary[str, nn.Module] = weakref.WeakValueDictionary()
_runs: list[Callable] = []  # run(model, args, kwargs) makes a pass of two chips


def number_of(model: nn.Module) -> str:
    """A number by which a graph names the model: always the same, so that a graph serves all contexts."""
    if model not in _numbers:
        _numbers[model] = str(next(_count))
        _models[_numbers[model]] = model
    return _numbers[model]


def checks_by(run: Callable) -> Callable:
    """Decorator: `run(model, *args, **kwargs)` makes a pass of two chips, with the check."""
    _runs[:] = [run]
    return run


def checked(model: str, args: tuple, kwargs: dict, parts: int) -> tuple[tuple, dict]:
    """The same inputs, through the operator.

    The operator takes tensors, None, True, False and strings. With other inputs, as in containers, the model is not
    checked.

    Args:
        model: its number.
        args, kwargs: the inputs.
        parts: 1, or the number of chips if each has its own inputs.
    """
    given = [("", value) for value in args] + list(kwargs.items())
    if not model or not all(value is None or isinstance(value, (Tensor, bool, str)) for _, value in given):
        return args, kwargs
    tensors = [value for _, value in given if isinstance(value, Tensor)]
    if not tensors:
        return args, kwargs
    names = [name if isinstance(value, Tensor) else f"{name}={value!r}" for name, value in given]
    first = torch.ops.nft_ext.checked_inputs(tensors[0], tensors[1:], names, model, parts)

    def out(value: Any) -> Any:
        return first if value is tensors[0] else value

    return tuple([out(value) for value in args]), {name: out(value) for name, value in kwargs.items()}


torch.library.define(
    "nft_ext::checked_inputs",
    "(Tensor x, Tensor[] others, str[] names, str model, SymInt parts) -> Tensor",
    tags=torch.Tag.pt2_compliant_tag,
)


@torch.library.register_fake("nft_ext::checked_inputs")
def _(x: Tensor, others: list[Tensor], names: list[str], model: str, parts: int) -> Tensor:
    return x.clone()


@torch.library.impl("nft_ext::checked_inputs", "CompositeExplicitAutograd")
def _checked_inputs(x: Tensor, others: list[Tensor], names: list[str], model: str, parts: int) -> Tensor:
    """x itself, copied.

    Raises:
        RuntimeError: the model mixes chips, or another thread is in its contexts.
    """
    found = _models.get(model)
    if found is None:
        return x.clone()
    tensors = iter(of_chips([x, *others], parts, [0]) if parts > 1 else [x, *others])
    given = []
    for name in names:
        name, constant, value = name.partition("=")
        given.append((name, ast.literal_eval(value) if constant else next(tensors)))
    args, kwargs = tuple(value for name, value in given if not name), {name: value for name, value in given if name}
    modules = modules_of(found)
    layers = [m for m in modules if isinstance(m, NoisyLayer)]
    for layer in layers:
        layer.check_thread()
    kind, known = chip_check.kind_of(modules, (args, kwargs)), chip_check.known(found, modules)
    if kind not in known and not chip_check.impossible(layers):
        with torch.no_grad():
            _runs[0](found, *args, **kwargs)
    if (reason := known.get(kind)) is not None:
        fail(
            "model",
            "must give the same on several chips in one pass as on each alone, because it is compiled. Use one draw "
            "per context, or do not compile it",
            reason,
            RuntimeError,
        )
    return x.clone()


def _no_state(ctx, inputs, output) -> None:
    ctx.others = len(inputs[1])


def _backward(ctx, grad: Tensor) -> tuple:
    return grad, [None] * ctx.others, None, None, None


torch.library.register_autograd("nft_ext::checked_inputs", _backward, setup_context=_no_state)
