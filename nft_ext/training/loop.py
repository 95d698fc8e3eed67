"""The training loop: steps, a validation after each epoch, selection of the best epoch, saves of the state."""

from __future__ import annotations

import dataclasses
import time
import warnings
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from nft_ext._common.progress import Progress
from nft_ext.nn.observed import observed
from nft_ext.training.batches import Batches, permuted
from nft_ext.training.history import History, NonFiniteLoss
from nft_ext.training.outputs import Outputs
from nft_ext.training.randomness import seed_at, seed_torch
from nft_ext.training.recipe import with_memory_format
from nft_ext.training.selection import Validation, validate
from nft_ext.training.state import StateFile, pack_optimizer, under, unpack_optimizer
from nft_ext.training.step import DivergedWeights, Gradient, finite_weights, laid_out
from nft_ext.training.task_batches import TaskBatches
from nft_ext.training.task_selection import Judge, TaskValidation

STEPS_PER_CHECK = 32  # on CUDA, reading the loss waits for the GPU, so it is checked only every so many steps


class Loop:
    """One training in progress. `epoch` epochs are complete, and `step` steps of the next one."""

    def __init__(
        self,
        gradient: Gradient,
        validation: Batches | TaskBatches,
        validation_chips: int,
        keep: str,
        compiled: bool,
        history: History,
        judge: Judge | None = None,
    ) -> None:
        self.gradient, self.history = gradient, history
        self.prepared, self.method, self.recipe = gradient.prepared, gradient.method, gradient.recipe
        self.ranks, self.seed, self.device = gradient.ranks, gradient.seed, gradient.ranks.device
        self.validation, self.validation_chips = validation, validation_chips
        self.keep, self.compiled, self.judge = keep, compiled, judge
        self.optimizer = self.recipe.build_optimizer(self.prepared.parameters())
        self.best: Any = None  # the Validation or TaskValidation of the best epoch
        self.epoch = self.step = 0
        self.total = torch.zeros((), device=self.device)  # loss summed over the images of the epoch so far
        self.epoch_seconds = 0.0  # spent on this epoch before `_resumed`
        self._resumed = time.monotonic()

    def run(self, progress: bool | None, outputs: Outputs, state: StateFile | None) -> None:
        """Trains from the saved state, or from the start, and adds each epoch to the history."""
        start = time.monotonic()
        saved = None if state is None else state.read()
        if saved is not None:
            self.restore(*saved)
        else:
            self.save(state)  # before any other file: whoever finds one of them finds the state, too
        before = self.history.seconds
        self.ranks.agree_with_first("state", {"epoch": self.epoch, "step": self.step})
        outputs.begin(self.history)
        done = self.epoch + self.step / len(self._batches()) if self.epoch < self.recipe.epochs else self.recipe.epochs
        label = f"train {self.method.name}"
        try:
            with Progress(self.recipe.epochs, label, "epochs", progress, done=done) as bar:
                self._resumed = time.monotonic()
                while self.epoch < self.recipe.epochs:
                    self._finish_epoch(self._steps(bar, state), bar, outputs)
                    self.history.seconds = before + time.monotonic() - start
                    self.save(state)
        except KeyboardInterrupt:
            self.history.interrupted = True
            if self.history.best_epoch is None:
                self.history.model = self._plain()
        except DivergedWeights as error:
            raise self._diverged("the weights") from error
        finally:
            self.history.seconds = before + time.monotonic() - start
            outputs.close()

    def _batches(self) -> list[Tensor]:
        """The epoch's batches of indices. They follow from seed and epoch, so a continued epoch has the same ones."""
        data = self.gradient.data
        if isinstance(data, TaskBatches) and data.loader:  # its batches come in the loader's own order
            return list(torch.arange(len(data)).split(1))
        order = torch.Generator().manual_seed(seed_at(self.seed, "order", self.epoch))
        return permuted(len(data), self.recipe.batch_size, order, least=2 * self.ranks.size)

    def _steps(self, bar: Progress, state: StateFile | None) -> dict[str, float]:
        batches = self._batches()
        first = self.epoch * len(batches)
        steps = self.recipe.epochs * len(batches)
        self.prepared.train()
        if isinstance(self.gradient.data, TaskBatches):
            self.gradient.data.begin(self.seed, self.epoch)
        for index in range(self.step, len(batches)):
            for group in self.optimizer.param_groups:
                group["lr"] = self.recipe.learning_rate(first + index, steps)
            loss = self._gradient(batches[index], first + index)
            self.total += loss * self._used(batches[index])
            if self.device.type == "cpu" or index % STEPS_PER_CHECK == 0 or index == len(batches) - 1:
                self._check_finite(self.total)
            self.optimizer.step()
            self.step = index + 1
            bar.update(1 / len(batches))
            if state is not None and state.due():
                self.save(state)
        lr = self.recipe.learning_rate(first + len(batches) - 1, steps)
        return {"epoch": self.epoch + 1, "lr": lr, "train_loss": float(self.total) / sum(map(self._used, batches))}

    def _gradient(self, indices: Tensor, step: int) -> Tensor:
        """The loss of a step. In the first step, warns of noisy layers that did not run."""
        if step > 0 or self.method.sigma is None:
            return self.gradient(indices, step)
        with observed(self.prepared) as observer:
            loss = self.gradient(indices, step)
        if self.ranks.first:
            for text in observer.found().texts("in the first step"):
                warnings.warn(f"fit: {text}", stacklevel=5)
        return loss

    def _used(self, indices: Tensor) -> int:
        return len(indices) - len(indices) % self.ranks.size

    def _finish_epoch(self, row: dict[str, Any], bar: Progress, outputs: Outputs) -> None:
        found = self._validate()
        row |= found.row()
        now = time.monotonic()
        self.history.rows.append(row | {"seconds": self.epoch_seconds + now - self._resumed})
        bar.update(0, note=f"loss {row['train_loss']:.3f}, validation {found}")
        better = self._better(found)
        if better:
            self.best = found
            self.history.model = self._plain()
            self.history.best_epoch = row["epoch"]
        self.epoch, self.step, self.epoch_seconds, self._resumed = self.epoch + 1, 0, 0.0, now
        self.total = torch.zeros((), device=self.device)
        outputs.epoch(self.history, better)

    def _better(self, found: Any) -> bool:
        """Whether the weights of the epoch with the figures `found` are kept."""
        if self.keep == "published":
            return self.best is None or found.accuracy > self.best.accuracy
        return self.keep == "last" or found.better_than(self.best)

    def _validate(self) -> Validation | TaskValidation:
        seed_torch(seed_at(self.seed, "validation", self.epoch), self.device)
        # The validation contexts add hooks to the model. A graph compiled without them would skip the hooks.
        eager = torch.compiler.set_stance("force_eager") if self.compiled else nullcontext()
        noisy, ranks = self.method.sigma is not None, self.ranks
        with finite_weights(self.prepared), eager:
            if isinstance(self.validation, TaskBatches):
                assert self.judge is not None
                found = self.judge.validate(
                    self.prepared,
                    self.validation,
                    noisy=noisy,
                    draws=self.validation_chips,
                    seed=self.seed,
                    recipe=self.recipe,
                    ranks=ranks,
                    laid_out=lambda batch: laid_out(batch, self.recipe),
                )
            else:
                found = validate(
                    self.prepared,
                    self.validation,
                    noisy=noisy,
                    draws=self.validation_chips,
                    seed=self.seed,
                    recipe=self.recipe,
                    ranks=ranks,
                    fresh=self.epoch if self.keep == "published" else None,
                )
        self._check_finite(torch.tensor(found.loss))
        return found

    def save(self, state: StateFile | None) -> None:
        """Writes the state that `restore` reads. A finished training stores only the best weights."""
        if state is None or not state.writes:
            return
        tensors = {}
        if self.epoch < self.recipe.epochs:
            self._check_finite(self.total)
            if not all(bool(p.isfinite().all()) for p in self.prepared.parameters()):
                raise self._diverged("the weights")
            tensors = {f"model/{name}": t for name, t in self.prepared.state_dict().items()}
            tensors |= {f"optimizer/{name}": t for name, t in pack_optimizer(self.optimizer).items()}
            tensors["total"] = self.total
        if self.best is not None:
            tensors |= {f"best/{name}": t for name, t in self.history.model.state_dict().items()}
        seconds = self.epoch_seconds + time.monotonic() - self._resumed
        state.write(
            tensors,
            {
                "epoch": self.epoch,
                "step": self.step,
                "rows": self.history.rows,
                "best_epoch": self.history.best_epoch,
                "best": None if self.best is None else dataclasses.asdict(self.best),
                "epoch_seconds": seconds,
                "seconds": sum(row["seconds"] for row in self.history.rows) + seconds,
            },
        )

    def restore(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Restores the training to the moment of `save`."""
        self.epoch, self.step = facts["epoch"], facts["step"]
        self.history.rows, self.history.best_epoch = facts["rows"], facts["best_epoch"]
        self.history.seconds, self.epoch_seconds = facts["seconds"], facts["epoch_seconds"]
        if facts["best"] is not None:
            self.best = (Validation if "accuracy" in facts["best"] else TaskValidation)(**facts["best"])
            self.history.model.load_state_dict(under("best", tensors))
        if self.epoch < self.recipe.epochs:
            self.prepared.load_state_dict(under("model", tensors))
            unpack_optimizer(self.optimizer, under("optimizer", tensors))
            self.total = tensors["total"].to(self.device)

    def _plain(self) -> nn.Module:
        return with_memory_format(self.method.finish(self.prepared), torch.contiguous_format).eval()

    def _check_finite(self, loss: Tensor) -> None:
        if not bool(loss.isfinite()):
            raise self._diverged("the loss")

    def _diverged(self, what: str) -> NonFiniteLoss:
        best = self.history.best_epoch
        kept = "the initial weights" if best is None else f"the weights of epoch {best}"
        message = (
            f"{what} became NaN or infinite in epoch {self.epoch + 1} (lr {self.recipe.lr:g}); "
            f"{kept} are kept in this error's .history.model. A smaller lr usually helps."
        )
        return NonFiniteLoss(message, self.history)
