"""Validation of an epoch: accuracy over a few chips that neither training nor evaluation uses."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from nft_ext._common.logits import logits_of
from nft_ext._common.targets import checked_target
from nft_ext.nn.contexts import chips, noise
from nft_ext.training.batches import Batches
from nft_ext.training.ranks import Ranks
from nft_ext.training.recipe import Recipe

KEEP = ("best", "last")  # the epoch whose weights `fit` returns


@dataclass(frozen=True)
class Validation:
    """Mean accuracy and cross-entropy over images and chips, and the accuracy with the noise off."""

    accuracy: float
    loss: float
    clean: float

    def better_than(self, other: Validation | None) -> bool:
        """Higher accuracy; at equal accuracy, lower loss."""
        return other is None or (self.accuracy, -self.loss) > (other.accuracy, -other.loss)


def validate(
    model: nn.Module, data: Batches, *, noisy: bool, draws: int, seed: int, recipe: Recipe, ranks: Ranks
) -> Validation:
    """The figures of a prepared model on chips `0 .. draws-1` of `seed`, in the "selection" key domain.

    Every epoch is measured on the same chips, so epochs are compared on common random numbers.

    Args:
        model: the prepared model.
        data: the validation images.
        noisy: whether the model has noisy layers. Otherwise one plain pass suffices.
        draws: number of chips.
        seed: seed of the chips.
        recipe: gives batch size and memory format.
        ranks: the processes that share the batches. Every rank gets the whole result.
    """
    if not noisy:
        accuracy, loss = _figures(model, data, 1, recipe, ranks)
        return Validation(accuracy, loss, accuracy)
    with chips(model, seed=seed, draws=range(draws), domain="selection"):
        accuracy, loss = _figures(model, data, draws, recipe, ranks)
    with noise(model, enabled=False):
        clean, _ = _figures(model, data, 1, recipe, ranks)
    return Validation(accuracy, loss, clean)


@torch.no_grad()
def _figures(model: nn.Module, data: Batches, chips_per_pass: int, recipe: Recipe, ranks: Ranks) -> tuple[float, float]:
    model.eval()
    right, loss = 0, 0.0
    for indices in torch.arange(len(data)).split(recipe.batch_size)[ranks.rank :: ranks.size]:
        x, target = data.take(indices)
        target = target.to(ranks.device).repeat(chips_per_pass)  # [S*B], chip-major as the output is
        logits = logits_of(model(recipe.laid_out(x.to(ranks.device)))).float()
        target = checked_target(logits, target, model)  # before a comparison that could broadcast
        right += int((logits.argmax(dim=1) == target).sum())
        loss += float(cross_entropy(logits, target, reduction="sum"))
    right, loss = ranks.add(torch.tensor([right, loss], dtype=torch.float64, device=ranks.device)).tolist()
    seen = chips_per_pass * len(data)
    return right / seen, loss / seen
