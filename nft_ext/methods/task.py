"""The task of a training: how a model's output is made from a batch, and the criterion that judges it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.modules import loss as torchs

from nft_ext._common.checks import fail
from nft_ext._common.functions import callable_or_none, unwrapped
from nft_ext._common.logits import logits_of
from nft_ext._common.targets import IGNORED, checked_target
from nft_ext.nn.batch import default_forward, target_of
from nft_ext.nn.chip_inputs import opened

Criterion = Callable[[Any, Any], Tensor]  # (output, batch or target) -> scalar
Forward = Callable[[Any, Any], Any]  # (model, batch) -> output
Select = str | Callable[[Any], Any]  # of a model's output: what the criterion gets

# Losses of torch. Those of LOGITS see a factor on the output as a temperature. Those of VALUES fit the output itself.
LOGITS = {"CrossEntropyLoss", "BCEWithLogitsLoss", "cross_entropy", "binary_cross_entropy_with_logits"}
VALUES = {"MSELoss", "L1Loss", "SmoothL1Loss", "HuberLoss", "PoissonNLLLoss"}
VALUES |= {"mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "poisson_nll_loss"}


@dataclass(frozen=True)
class Task:
    """How a batch becomes a loss.

    Attributes:
        criterion: (output, batch) -> scalar. A loss of torch gets the target in place of the batch. None: the
            cross-entropy of the logits.
        forward: (model, batch) -> the model's output. None: `default_forward`.
        output: what the criterion gets of the model's output, a name or a function. None: the tensor itself, or its
            `logits`, or the whole container.

    Raises:
        TypeError: criterion or forward is not callable, or output is neither a name nor a function.
    """

    criterion: Criterion | None = None
    forward: Forward | None = None
    output: Select | None = None

    def __post_init__(self) -> None:
        callable_or_none("criterion", self.criterion, "(output, batch) -> scalar")
        callable_or_none("forward", self.forward, "(model, batch) -> output")
        if not isinstance(self.output, str):
            callable_or_none("output", self.output, "of the model's output, a name")

    @property
    def scale(self) -> str:
        """What a factor on the output does: "logits": a temperature; "values": it falsifies the output; "unknown"."""
        if self.criterion is None:
            return "logits"
        name = _name_in_torch(self.criterion)
        return "logits" if name in LOGITS else "values" if name in VALUES else "unknown"

    def run(self, model: Any, batch: Any, with_target: bool) -> Any:
        """What the criterion gets of the output of `model` for `batch`.

        Args:
            model: the prepared model.
            batch: the batch, or the inputs alone.
            with_target: whether the batch includes its target.
        """
        return self.selected(self.raw(model, batch, with_target))

    def raw(self, model: Any, batch: Any, with_target: bool = True) -> Any:
        """The whole output of `model` for `batch`."""
        if self.forward is not None:
            return self.forward(model, batch)
        return default_forward(model, batch, with_target)

    def selected(self, made: Any) -> Any:
        """What the criterion gets of a model's output.

        Raises:
            TypeError, ValueError: the output has no such part.
        """
        if isinstance(self.output, str):
            found = made.get(self.output) if isinstance(made, Mapping) else getattr(made, self.output, None)
            if found is None:
                fail("output", "must name a part of the model's output", f"{self.output!r} of {_described(made)}")
        elif self.output is not None:
            found = self.output(made)
        elif self.criterion is None or isinstance(made, Tensor):
            return logits_of(made)
        else:
            logits = made.get("logits") if isinstance(made, Mapping) else getattr(made, "logits", None)
            found = logits if isinstance(logits, Tensor) else made
        if not isinstance(found, Tensor) and (self.criterion is None or _name_in_torch(self.criterion)):
            rule = "must select one tensor for the cross-entropy and for losses of torch"
            fail("output", rule, _described(found), TypeError)
        return found

    def target(self, output: Any, given: Any, with_target: bool, model: nn.Module | None) -> Any:
        """The criterion's second argument, checked against the `output` of the model where the loss is known.

        Args:
            output: from `run`.
            given: the batch, or the target alone.
            with_target: whether `given` is a batch.
            model: the model of the output, for `checked_target`.

        Raises:
            TypeError, ValueError: the target does not fit the output.
        """
        name = _name_in_torch(self.criterion)
        if self.criterion is not None and name is None:
            return given
        target = target_of(given) if with_target else given
        if self.criterion is None:
            return checked_target(output, target, model, stacklevel=7)
        if name in ("CrossEntropyLoss", "cross_entropy"):
            ignored = _option(self.criterion, "ignore_index", IGNORED)
            checked_target(output, target if ignored == IGNORED else _ignoring(target, ignored), model, stacklevel=7)
            return target if target.is_floating_point() else target.long()
        if name in VALUES and isinstance(target, Tensor) and target.shape != output.shape:
            rule = f"must have the shape of the output, {list(output.shape)}, or torch repeats one of them"
            fail("target", rule, list(target.shape))
        return target

    def loss(self, output: Any, target: Any) -> Tensor:
        """The loss, a scalar. `output` may be a weighted sum; `target` is from `target`.

        Raises:
            TypeError, ValueError: the criterion returns no scalar tensor.
        """
        if self.criterion is None:
            return cross_entropy(output, target)
        found = self.criterion(output, target)
        rule = "must return the mean loss of a batch, a floating-point tensor without dimensions"
        if not isinstance(found, Tensor):
            fail("criterion", rule, type(found).__name__, TypeError)
        if found.dim() or not found.is_floating_point():
            fail("criterion", rule, f"{found.dtype} {list(found.shape)}")
        return found


@dataclass(frozen=True)
class Step:
    """A task and the batch of one step: inputs and target, or a batch that holds both (`given` is None).

    Attributes:
        task: the task.
        batch: the inputs, or the whole batch.
        given: the target, or None.
    """

    task: Task
    batch: Any
    given: Any = None

    def output(self, model: Any) -> Any:
        """What the criterion gets of the output of one forward of `model`."""
        return self.task.run(model, self.batch, self.given is None)

    def target(self, output: Any, model: nn.Module | None) -> Any:
        """The criterion's second argument, checked against an output."""
        whole = self.given is None
        return self.task.target(output, self.batch if whole else self.given, whole, model)

    def loss(self, output: Any, target: Any) -> Tensor:
        """The loss of an output, a scalar."""
        return self.task.loss(output, target)


def weighted(combine: Callable[[Sequence[Tensor]], Tensor], outputs: Sequence[Any], path: str = "output") -> Any:
    """`combine` applied to every tensor of outputs of the same structure.

    Args:
        combine: (tensors of equal shape, one per output) -> tensor.
        outputs: one or more outputs of a model: tensors, or containers of tensors.
        path: name of the outputs in messages.

    Raises:
        TypeError, ValueError: something in the outputs cannot be summed; the message names it.
    """
    first = outputs[0]
    if isinstance(first, Tensor):
        if not (first.is_floating_point() and first.dim()):
            rule = "must be a floating-point tensor with one row per example to be summed; select others by output="
            fail(path, rule, f"{first.dtype} {list(first.shape)}")
        for n, other in enumerate(outputs):
            if not isinstance(other, Tensor) or other.shape != first.shape:
                rule = f"must have the shape of the first forward's, {list(first.shape)}"
                fail(path, rule, f"{_described(other)} in forward {n}")
        return combine(outputs)
    if first is None and all(other is None for other in outputs):
        return None
    found = opened(first)
    rule = "must hold only tensors, in the same structure in every forward, to be summed; select others by output="
    if found is None:
        fail(path, rule, _described(first), TypeError)
    entries = [found[0]]
    for other in outputs[1:]:
        there = opened(other)
        if there is None or type(other) is not type(first) or len(there[0]) != len(found[0]):
            fail(path, rule, f"{_described(first)} and {_described(other)}", TypeError)
        entries.append(there[0])
    names = list(first) if isinstance(first, Mapping) else range(len(found[0]))
    parts = [weighted(combine, part, f"{path}[{name!r}]") for name, part in zip(names, zip(*entries, strict=True))]
    return found[1](parts)


def scaled(factor: float, output: Any) -> Any:
    """`factor * output`, for every tensor of an output."""
    return weighted(lambda tensors: factor * tensors[0], [output])


def check_factor(task: Task, argument: str, option: Any, total: float) -> None:
    """Refuses a factor on the output that the criterion would take for the output's scale.

    Args:
        task: the task.
        argument: name of the option that sets the factor.
        option: its value; None: the default, 1/(N+1).
        total: the factor, the sum of all weights.

    Raises:
        ValueError: the network would learn a multiple of its target, or the criterion does not tell.
    """
    if task.scale == "values" and abs(total - 1.0) > 1e-6:
        rule = "must keep the output's scale under a regression's criterion: 'unit', or weights whose sum is 1"
        fail(argument, rule, f"{option!r}, the sum {total:g}")
    if task.scale == "unknown" and option is None:
        rule = "must be given with a criterion of your own: 'unit' if the scale of the output matters (a regression)"
        fail(argument, f"{rule}, {total:g} or another factor if it is a temperature (logits of a softmax)", option)


def _name_in_torch(criterion: Any) -> str | None:
    """The name of a loss that torch itself defines; None for others."""
    function = unwrapped(criterion)
    kind = type(function)
    if isinstance(function, nn.Module):
        return kind.__name__ if kind.__module__ == torchs.__name__ else None
    module = getattr(function, "__module__", None)
    return function.__name__ if module == "torch.nn.functional" else None


def _option(criterion: Any, name: str, default: Any) -> Any:
    """An option of a loss of torch: an attribute of its module, or a keyword of functools.partial."""
    while isinstance(criterion, functools.partial):
        if name in criterion.keywords:
            return criterion.keywords[name]
        criterion = criterion.func
    return getattr(criterion, name, default)


def _ignoring(target: Any, index: int) -> Any:
    return torch.where(target == index, IGNORED, target) if isinstance(target, Tensor) else target


def _described(value: Any) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
