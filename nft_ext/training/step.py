"""The gradient of one optimizer step, over micro-batches, chips and ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nft_ext.methods import Method
from nft_ext.training.batches import Batches, micro_batches
from nft_ext.training.randomness import seed_at, seed_torch
from nft_ext.training.ranks import Ranks
from nft_ext.training.recipe import Recipe


@dataclass(frozen=True)
class Gradient:
    """Computes the gradient of the mean loss over a batch. Its randomness follows from seed and step.

    Attributes:
        prepared: the model, prepared by `method`.
        seed: the seed of the training, equal on all ranks.
        chip_per_rank: True: every rank programs its own chips. False: all ranks use the same chip in a forward.
    """

    prepared: nn.Module
    method: Method
    recipe: Recipe
    data: Batches
    augment: Callable[[Tensor], Tensor] | None
    seed: int
    ranks: Ranks
    chip_per_rank: bool

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
            x, target = self._images(chosen, step, part)
            self._choose_chip(step, part)
            with finite_weights(self.prepared), self.recipe.autocast(self.ranks.device):
                loss = self.method.loss(self.prepared, x, target) * (len(chosen) / used)
            loss.backward()
            total += loss.detach()
        self.ranks.add_gradients(self.prepared, total)
        return total

    def _images(self, chosen: Tensor, step: int, part: int) -> tuple[Tensor, Tensor]:
        device = self.ranks.device
        seed_torch(seed_at(self.seed, "data", step, part, self.ranks.rank), device)
        x, target = self.data.take(chosen)
        x, target = x.to(device, non_blocking=True), target.to(device, non_blocking=True)
        if self.augment is not None:
            x = self.augment(x)
        return self.recipe.laid_out(x), target

    def _choose_chip(self, step: int, part: int) -> None:
        rank = self.ranks.rank if self.chip_per_rank else 0
        seed_torch(seed_at(self.seed, "chip", step, part, rank), self.ranks.device)


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
