"""The gradient of one optimizer step, over micro-batches, chips and ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nft_ext.methods import Method
from nft_ext.methods.task import Task
from nft_ext.nn.chip_inputs import moved
from nft_ext.training.batches import Batches, micro_batches
from nft_ext.training.randomness import seed_at, seed_torch
from nft_ext.training.ranks import Ranks
from nft_ext.training.recipe import Recipe
from nft_ext.training.task_batches import TaskBatches


@dataclass(frozen=True)
class Gradient:
    """Computes the gradient of the mean loss over a batch. Its randomness follows from seed and step.

    Attributes:
        prepared: the model, prepared by `method`.
        seed: the seed of the training, equal on all ranks.
        chip_per_rank: True: every rank programs its own chips. False: all ranks use the same chip in a forward.
        task: of data of any structure; None: images and labels.
    """

    prepared: nn.Module
    method: Method
    recipe: Recipe
    data: Batches | TaskBatches
    augment: Callable[[Tensor], Tensor] | None
    seed: int
    ranks: Ranks
    chip_per_rank: bool
    task: Task | None = None

    def __call__(self, indices: Tensor, step: int) -> Tensor:
        """The mean loss over `indices [B]`, a scalar on the torch device. Sets the parameters' gradients.

        Args:
            indices: images of the step, for all ranks.
            step: number of the step in the training, from 0.

        Raises:
            DivergedWeights: a weight is NaN or infinite.
        """
        share = self.ranks.share(indices)
        used = len(share) * self.ranks.size
        total = torch.zeros((), device=self.ranks.device)
        for parameter in self.prepared.parameters():
            parameter.grad = None
        for part, chosen in enumerate(micro_batches(share, self.recipe.accumulate)):
            batch = self._batch(chosen, step, part)
            self._choose_chip(step, part)
            with finite_weights(self.prepared), self.recipe.autocast(self.ranks.device):
                loss = self._loss(batch) * (len(chosen) / used)
            loss.backward()
            total += loss.detach()
        self.ranks.add_gradients(self.prepared, total)
        return total

    def _loss(self, batch: Any) -> Tensor:
        if self.task is None:
            return self.method.loss(self.prepared, *batch)
        options = {"criterion": self.task.criterion, "forward": self.task.forward, "output": self.task.output}
        return self.method.loss(self.prepared, batch, **options)

    def _batch(self, chosen: Tensor, step: int, part: int) -> Any:
        device = self.ranks.device
        seed_torch(seed_at(self.seed, "data", step, part, self.ranks.rank), device)
        batch = moved(self.data.take(chosen), device)
        if self.task is not None:
            return laid_out(batch, self.recipe, self.augment)
        x, target = batch
        if self.augment is not None:
            x = self.augment(x)
        return self.recipe.laid_out(x), target

    def _choose_chip(self, step: int, part: int) -> None:
        rank = self.ranks.rank if self.chip_per_rank else 0
        seed_torch(seed_at(self.seed, "chip", step, part, rank), self.ranks.device)


def laid_out(batch: Any, recipe: Recipe, augment: Callable[[Tensor], Tensor] | None = None) -> Any:
    """A batch of any structure for the model: augmentation and memory format apply to the first entry of a tuple.

    `fit` refuses both for other batches.
    """
    if augment is None and not recipe.channels_last:
        return batch
    first, *others = batch
    if augment is not None:
        first = augment(first)
    return type(batch)([recipe.laid_out(first) if recipe.channels_last else first, *others])


class DivergedWeights(ArithmeticError):
    """A weight is NaN or infinite."""


@contextmanager
def finite_weights(model: nn.Module) -> Iterator[None]:
    """Turns a layer's refusal of NaN or infinite weights into `DivergedWeights`."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        if all(bool(p.isfinite().all()) for p in model.parameters()):
            raise
        raise DivergedWeights from error
