"""Validation of an epoch for tasks of any kind: the criterion's loss, and a metric of the output, chip by chip."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nft_ext._common.checks import fail
from nft_ext._common.functions import check_parts, checked_pairs
from nft_ext._common.targets import IGNORED
from nft_ext.methods.task import Task
from nft_ext.nn.batch import size_of
from nft_ext.nn.chip_inputs import moved, tensors_of
from nft_ext.nn.contexts import chips, noise
from nft_ext.training.ranks import Ranks
from nft_ext.training.recipe import Recipe
from nft_ext.training.selection import Validation
from nft_ext.training.task_batches import TaskBatches

Metric = Callable[[Any, Any], tuple[Tensor, Tensor]]  # (output, batch) -> numerator [B], denominator [B]


@dataclass(frozen=True)
class TaskValidation:
    """Mean loss over examples and chips; the metric, if there is one; and what judges an epoch with the noise off."""

    loss: float
    clean: float
    metric: float | None = None
    higher_is_better: bool = True

    def better_than(self, other: TaskValidation | None) -> bool:
        """A better metric; at an equal one, or without a metric, a lower loss."""
        return other is None or self._rank() > other._rank()

    def _rank(self) -> tuple[float, float]:
        metric = 0.0 if self.metric is None else self.metric
        return metric if self.higher_is_better else -metric, -self.loss

    def row(self) -> dict[str, float]:
        """The figures for the history."""
        metric = {} if self.metric is None else {"val_metric": self.metric}
        return {**metric, "val_loss": self.loss, "val_clean": self.clean}

    def __str__(self) -> str:
        return f"{self.loss if self.metric is None else self.metric:.4f}"


@dataclass(frozen=True)
class Judge:
    """What a task's epochs are judged by.

    Attributes:
        task: gives output and loss.
        metric: (output, batch) -> (numerator [B], denominator [B]); the figure is the ratio of the sums. None: the
            accuracy under the cross-entropy, else the loss.
        higher_is_better: whether a larger metric is better.
    """

    task: Task
    metric: Metric | None
    higher_is_better: bool

    @property
    def by_accuracy(self) -> bool:
        """Whether the accuracy judges, as for images."""
        return self.metric is None and self.task.criterion is None

    def sums(self, model: nn.Module, batch: Any) -> list[float]:
        """Loss, its weight, and the metric's numerator and denominator, summed over one batch on the present chip.

        Raises:
            TypeError, ValueError: criterion or metric returns another kind of value.
        """
        made = self.task.raw(model, batch)
        output = self.task.selected(made)
        target = self.task.target(output, batch, True, model)
        if self.by_accuracy:
            right, counted = _accuracy(output, target)
            loss = float(self.task.loss(output.float(), target)) * counted
            return [loss, counted, right, counted]
        size = float(_length(batch))
        sums = [float(self.task.loss(output, target)) * size, size]
        return sums + ([0.0, 0.0] if self.metric is None else _metric_sums(self.metric(made, batch), size_of(batch)))

    def validate(
        self,
        model: nn.Module,
        data: TaskBatches,
        *,
        noisy: bool,
        draws: int,
        seed: int,
        recipe: Recipe,
        ranks: Ranks,
        laid_out: Callable[[Any], Any],
    ) -> Validation | TaskValidation:
        """The figures of a prepared model on chips `0 .. draws-1` of `seed`, in the "selection" key domain.

        Every batch is read once and runs on one chip after the other, then with the noise off.
        """
        model.eval()
        data.begin(seed, 0)
        indices = torch.arange(len(data)).split(1 if data.loader else recipe.batch_size)
        totals = torch.zeros(2, 4, dtype=torch.float64)
        with torch.no_grad():
            for chosen in indices[ranks.rank :: ranks.size]:
                batch = laid_out(moved(data.take(chosen), ranks.device))
                for draw in range(draws if noisy else 1):
                    chip = chips(model, seed=seed, draws=draw, domain="selection")
                    with chip if noisy else contextlib.nullcontext():
                        totals[0] += torch.tensor(self.sums(model, batch), dtype=torch.float64)
                if noisy:
                    with noise(model, enabled=False):
                        totals[1] += torch.tensor(self.sums(model, batch), dtype=torch.float64)
        found = ranks.add(totals.to(ranks.device)).tolist()
        return self._figures(found[0], found[1] if noisy else found[0])

    def _figures(self, noisy: list[float], clean: list[float]) -> Validation | TaskValidation:
        loss, metric = _ratio("criterion", *noisy[:2]), None
        judged = _ratio("criterion", *clean[:2])
        if self.metric is not None or self.by_accuracy:
            metric, judged = _ratio("metric", *noisy[2:]), _ratio("metric", *clean[2:])
        if self.by_accuracy:
            assert metric is not None
            return Validation(metric, loss, judged)
        return TaskValidation(loss, judged, metric, self.higher_is_better)


def _ratio(name: str, numerator: float, denominator: float) -> float:
    if denominator == 0.0:
        fail(name, "must have a denominator above 0 over the validation examples", denominator)
    return numerator / denominator


def _accuracy(logits: Tensor, target: Tensor) -> tuple[float, float]:
    """Right and counted labels. Class probabilities count by their largest."""
    labels = target.argmax(dim=1) if target.is_floating_point() else target
    counted = labels != IGNORED
    return float(((logits.argmax(dim=1) == labels) & counted).sum()), float(counted.sum())


def _metric_sums(found: Any, size: int | None) -> list[float]:
    pairs = checked_pairs("metric", found)
    check_parts("metric", pairs, size)
    return pairs.sum(dim=0).tolist()


def _length(batch: Any) -> int:
    """Examples in a batch: dim 0 of its first tensor with a dimension."""
    found = next((len(tensor) for tensor in tensors_of(batch) if tensor.dim()), None)
    if found is None:
        fail("batch", "must hold a tensor with one row per example", type(batch).__name__)
    return found
