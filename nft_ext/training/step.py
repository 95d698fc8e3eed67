"""One optimizer step's gradient: micro-batches, precision, chips and ranks."""

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
    """Computes gradients of the mean loss over a batch; all that is random in it follows from seed and step.

    Attributes:
        seed: the run's. All ranks must have the same one, so that they share chips.
        chip_per_rank: every rank programs chips of its own; False: all ranks use the same chip in a forward.
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
        """The mean loss over `indices [B]`, a scalar on the device; its gradient is left in the parameters.

        Args:
            indices: images of the step, those of all ranks.
            step: number of the step in the run, from 0.

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
            with finite_weights(self.prepared):
                with self.recipe.autocast(self.ranks.device):
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
    """Noisy layers refuse NaN weights; inside, such a refusal is a `DivergedWeights`."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        if all(bool(p.isfinite().all()) for p in model.parameters()):
            raise
        raise DivergedWeights from error
