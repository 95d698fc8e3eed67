"""Validation of an epoch: accuracy over a few chips that neither training nor evaluation uses."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
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

KEEP = ("best", "last", "published")  # the epoch whose weights `fit` returns
PUBLISHED_BATCH = 128  # images per chip of the published selection


@dataclass(frozen=True)
class Validation:
    """Mean accuracy and cross-entropy over images and chips, and the accuracy with the noise off."""

    accuracy: float
    loss: float
    clean: float

    def row(self) -> dict[str, float]:
        """The figures for the history."""
        return {"val_accuracy": self.accuracy, "val_loss": self.loss, "val_clean": self.clean}

    def __str__(self) -> str:
        return f"{self.accuracy:.4f}"

    def better_than(self, other: Validation | None) -> bool:
        """Higher accuracy; at equal accuracy, lower loss."""
        return other is None or (self.accuracy, -self.loss) > (other.accuracy, -other.loss)


def validate(
    model: nn.Module,
    data: Batches,
    *,
    noisy: bool,
    draws: int,
    seed: int,
    recipe: Recipe,
    ranks: Ranks,
    fresh: int | None = None,
) -> Validation:
    """The figures of a prepared model on chips `0 .. draws-1` of `seed`, in the "selection" key domain.

    Every epoch is measured on the same chips, so epochs are compared on common random numbers. With `fresh`, as in the
    published code, every 128 images of every epoch have a new chip instead.

    Args:
        model: the prepared model.
        data: the validation images.
        noisy: whether the model has noisy layers. Otherwise one plain pass suffices.
        draws: number of chips.
        seed: seed of the chips.
        recipe: gives batch size and memory format.
        ranks: the processes that share the batches. Every rank gets the whole result.
        fresh: number of the epoch, for a new chip per 128 images. None: the same chips in every epoch.
    """
    if not noisy:
        accuracy, loss = _figures(model, data, 1, recipe, ranks)
        return Validation(accuracy, loss, accuracy)
    if fresh is None:
        with chips(model, seed=seed, draws=range(draws), domain="selection"):
            accuracy, loss = _figures(model, data, draws, recipe, ranks)
    else:
        count = -(-len(data) // PUBLISHED_BATCH)

        def chip(batch: int) -> AbstractContextManager:
            return chips(model, seed=seed, draws=fresh * count + batch, domain="selection")

        accuracy, loss = _figures(model, data, 1, recipe, ranks, PUBLISHED_BATCH, chip)
    with noise(model, enabled=False):
        clean, _ = _figures(model, data, 1, recipe, ranks)
    return Validation(accuracy, loss, clean)


@torch.no_grad()
def _figures(
    model: nn.Module,
    data: Batches,
    chips_per_pass: int,
    recipe: Recipe,
    ranks: Ranks,
    batch_size: int | None = None,
    context: Callable[[int], AbstractContextManager] = lambda batch: nullcontext(),
) -> tuple[float, float]:
    """Accuracy and cross-entropy. Each batch runs inside `context(number of the batch)`."""
    model.eval()
    right, loss = 0, 0.0
    batches = list(enumerate(torch.arange(len(data)).split(batch_size or recipe.batch_size)))
    for number, indices in batches[ranks.rank :: ranks.size]:
        x, target = data.take(indices)
        target = target.to(ranks.device).repeat(chips_per_pass)  # [S*B], chip-major as the output is
        with context(number):
            logits = logits_of(model(recipe.laid_out(x.to(ranks.device)))).float()
        target = checked_target(logits, target, model)  # before a comparison that could broadcast
        right += int((logits.argmax(dim=1) == target).sum())
        loss += float(cross_entropy(logits, target, reduction="sum"))
    right, loss = ranks.add(torch.tensor([right, loss], dtype=torch.float64, device=ranks.device)).tolist()
    seen = chips_per_pass * len(data)
    return right / seen, loss / seen
