"""The training loop: epochs of steps, a validation after each, the best epoch kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from nft_ext.methods import Method
from nft_ext.progress import Progress
from nft_ext.training.batches import Batches, permuted
from nft_ext.training.checkpoint import save
from nft_ext.training.history import History, NonFiniteLoss
from nft_ext.training.recipe import Recipe
from nft_ext.training.selection import Validation, validate

STEPS_A_CHECK = 32  # on CUDA, reading the loss waits for the device: look only now and then


@dataclass
class Loop:
    """One training under way."""

    prepared: nn.Module
    method: Method
    recipe: Recipe
    train_data: Batches
    validation_data: Batches
    seed: int
    device: torch.device
    augment: Callable[[Tensor], Tensor] | None
    validation_chips: int
    compiled: bool
    history: History

    def run(
        self, progress: bool | None, log: str | PathLike | None, checkpoint: str | PathLike | None, notes: dict
    ) -> None:
        """Trains, filling the history as epochs end."""
        start = time.monotonic()
        history, recipe = self.history, self.recipe
        optimizer = recipe.build_optimizer(self.prepared.parameters())
        order = torch.Generator().manual_seed(self.seed)
        best: Validation | None = None
        try:
            with Progress(recipe.epochs, f"train {self.method.name}", "epochs", progress) as bar:
                for epoch in range(1, recipe.epochs + 1):
                    begun = time.monotonic()
                    row = {"epoch": epoch} | self._epoch(epoch, optimizer, order, bar)
                    found = self._validate(epoch)
                    row |= {"val_accuracy": found.accuracy, "val_loss": found.loss, "val_clean": found.clean}
                    history.rows.append(row | {"seconds": time.monotonic() - begun})
                    bar.update(0, note=f"loss {row['train_loss']:.3f}, validation {found.accuracy:.4f}")
                    if found.better_than(best):
                        best = found
                        history.model = self.method.finish(self.prepared).eval()
                        history.best_epoch = epoch
                        if checkpoint is not None:
                            save(checkpoint, history.model, notes | {"epoch": epoch, "validation": history.best})
                    if log is not None:
                        history.to_csv(log)
        except KeyboardInterrupt:
            history.interrupted = True
            if history.best_epoch is None:
                history.model = self.method.finish(self.prepared).eval()
        finally:
            history.seconds = time.monotonic() - start

    def _epoch(
        self, epoch: int, optimizer: torch.optim.Optimizer, order: torch.Generator, bar: Progress
    ) -> dict[str, float]:
        batches = permuted(len(self.train_data), self.recipe.batch_size, order)
        steps = self.recipe.epochs * len(batches)
        self.prepared.train()
        total = torch.zeros((), device=self.device)
        for index, indices in enumerate(batches):
            lr = self.recipe.learning_rate((epoch - 1) * len(batches) + index, steps)
            for group in optimizer.param_groups:
                group["lr"] = lr
            x, target = self.train_data.take(indices)
            x, target = x.to(self.device), target.to(self.device)
            if self.augment is not None:
                x = self.augment(x)
            with self._finite_weights(epoch):
                loss = self.method.loss(self.prepared, x, target)
            total += loss.detach() * len(indices)
            if self.device.type == "cpu" or index % STEPS_A_CHECK == 0 or index == len(batches) - 1:
                self._check_finite(total, epoch)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            bar.update(1 / len(batches))
        return {"lr": lr, "train_loss": float(total) / len(self.train_data)}

    def _validate(self, epoch: int) -> Validation:
        # The contexts of a validation hang hooks on the model, which a graph compiled without them would not see.
        eager = torch.compiler.set_stance("force_eager") if self.compiled else nullcontext()
        with self._finite_weights(epoch), eager:
            found = validate(
                self.prepared,
                self.validation_data,
                noisy=self.method.sigma is not None,
                draws=self.validation_chips,
                seed=self.seed,
                batch_size=self.recipe.batch_size,
                device=self.device,
            )
        self._check_finite(torch.tensor(found.loss), epoch)
        return found

    @contextmanager
    def _finite_weights(self, epoch: int) -> Iterator[None]:
        """Noisy layers refuse NaN weights; inside, such a refusal is a diverged training."""
        try:
            yield
        except (RuntimeError, ValueError) as error:
            if all(bool(p.isfinite().all()) for p in self.prepared.parameters()):
                raise
            raise self._diverged("the weights", epoch) from error

    def _check_finite(self, loss: Tensor, epoch: int) -> None:
        if not bool(loss.isfinite()):
            raise self._diverged("the loss", epoch)

    def _diverged(self, what: str, epoch: int) -> NonFiniteLoss:
        best = self.history.best_epoch
        kept = "the weights the run began with" if best is None else f"the weights of epoch {best}"
        message = (
            f"{what} became NaN or infinite in epoch {epoch} (learning rate {self.recipe.lr:g}); "
            f"{kept} are kept in this error's .history.model; a smaller lr usually helps"
        )
        return NonFiniteLoss(message, self.history)
