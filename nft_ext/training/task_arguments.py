"""The task of a call of `fit`: its data, its criterion and what judges its epochs, checked before any work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nft_ext._common.checks import boolean, fail
from nft_ext._common.functions import callable_or_none
from nft_ext.device import NVMDevice
from nft_ext.methods import Method
from nft_ext.methods.base import prepared_for, takes
from nft_ext.methods.task import Task
from nft_ext.nn.chip_inputs import moved
from nft_ext.training.recipe import Recipe
from nft_ext.training.step import laid_out
from nft_ext.training.task_batches import TaskBatches, is_plain
from nft_ext.training.task_selection import Judge


@dataclass(frozen=True)
class TaskArguments:
    """What `fit` was given beyond images and labels.

    Attributes:
        judge: the task, and what judges an epoch.
        train, validation: the data.
        given: the arguments that were given, by name, for the identity of the training.
    """

    judge: Judge
    train: TaskBatches
    validation: TaskBatches
    given: dict[str, Any]

    @property
    def task(self) -> Task:
        """How a batch becomes a loss."""
        return self.judge.task

    def prepared(self, method: Method, model: nn.Module, nvm: NVMDevice | None) -> nn.Module:
        """`method.prepare`, with an example where the method needs one."""
        return prepared_for(method, model, nvm, self.train.example(), self.task.forward, self.task.output)

    def check_fit(self, plain: nn.Module, recipe: Recipe, augment: Any, device: torch.device) -> None:
        """Runs one small batch of either data set through the plain model, the criterion and the metric.

        Raises:
            TypeError, ValueError: something does not fit.
        """
        for data in (self.train, self.validation):
            batch = moved(data.example(), device)
            first = batch[0] if isinstance(batch, (tuple, list)) and not hasattr(batch, "_fields") else None
            images = isinstance(first, Tensor)
            if augment is not None and data is self.train and not images:
                rule = (
                    "must be left out for batches that are no tuple (images, ...): let the data set augment its items"
                )
                fail("augment", rule, type(batch).__name__)
            if recipe.channels_last and not (isinstance(first, Tensor) and first.dim() == 4):
                rule = "must be False for batches that are no tuple (images [B, C, H, W], ...)"
                fail("channels_last", rule, type(batch).__name__)
            with torch.no_grad():
                self.judge.sums(plain, laid_out(batch, recipe))


def task_arguments(
    train: Any,
    validation: Any,
    *,
    method: Method,
    recipe: Recipe,
    keep: str,
    collate: Callable[[list[Any]], Any] | None,
    metric: Any,
    higher_is_better: Any,
    sizes_given: bool,
    **given: Any,
) -> TaskArguments | None:
    """The task; None for images and labels under the cross-entropy, which `fit` trains as ever.

    Args:
        train, validation, method, recipe, keep, collate, metric, higher_is_better: as `fit` has them.
        sizes_given: whether the caller set a batch size.
        given: criterion, forward and output.

    Raises:
        TypeError, ValueError: an argument that does not fit the others.
    """
    task = Task(**given)
    callable_or_none("metric", metric, "(output, batch) -> (numerator [B], denominator [B])")
    callable_or_none("collate", collate, "of a list of items, which makes a batch")
    if higher_is_better is not None:
        boolean("higher_is_better", higher_is_better)
        if metric is None:
            fail("higher_is_better", "must be given with the metric that it is about", higher_is_better)
    arguments = {**given, "metric": metric, "higher_is_better": higher_is_better, "collate": collate}
    if all(value is None for value in arguments.values()) and is_plain(train) and is_plain(validation):
        return None
    if keep == "published":
        fail("keep", "must be 'best' or 'last' with a criterion, a metric or batches of other structure", keep)
    if not takes(method.loss, *given):
        rule = "must have a loss(model, batch, criterion=, forward=, output=) for this task"
        fail("method", rule, type(method).__name__, TypeError)
    criterion = task.criterion
    if isinstance(criterion, nn.Module) and any(p.requires_grad for p in criterion.parameters()):
        rule = "must have no parameters to train, which fit would not: put them into the model, and use forward="
        fail("criterion", rule, type(criterion).__name__)
    method.check_criterion(criterion)
    data = TaskBatches("train", train, collate), TaskBatches("validation", validation, collate)
    if collate is not None and not any(one.collates for one in data):
        fail("collate", "must be left out, because neither data set has items to collate", type(train).__name__)
    _check_loader_options(data[0], recipe, sizes_given)
    judge = Judge(task, metric, True if higher_is_better is None else higher_is_better)
    return TaskArguments(judge, *data, arguments)


def _check_loader_options(data: TaskBatches, recipe: Recipe, sizes_given: bool) -> None:
    """Refuses options that say how `fit` makes batches, where a loader makes them."""
    if not data.loader:
        return
    if sizes_given:
        rule = "must be left out, because a loader makes the batches of"
        fail("batch_size", f"{rule} {data.argument}", recipe.batch_size)
    if recipe.accumulate > 1:
        rule = "must be 1 with a loader, whose batches fit does not cut: give a map-style data set as"
        fail("accumulate", f"{rule} {data.argument}", recipe.accumulate)
