"""What a training run leaves: the plain model of the best epoch and a row of figures an epoch."""

from __future__ import annotations

from dataclasses import dataclass, field
from os import PathLike
from typing import Any

from torch import nn

from nft_ext._common.files import write_csv

COLUMNS = ("epoch", "lr", "train_loss", "val_accuracy", "val_loss", "val_clean", "seconds")


@dataclass
class History:
    """The outcome of `fit`.

    Attributes:
        model: the plain backbone, in eval mode, with the weights of the best epoch (see `fit`); if the run
            was interrupted before a first epoch ended, with the weights it had reached.
        rows: one dict an epoch: epoch (from 1), lr (of its last step), train_loss (mean over its images),
            val_accuracy and val_loss (what the best epoch is chosen by), val_clean (accuracy with the noise
            off), seconds.
        best_epoch: the epoch of `model`; None if none ended.
        interrupted: stopped by Ctrl-C.
        seconds: wall-clock time of the whole run, with what earlier processes of a resumed run saved of theirs.
    """

    model: nn.Module = field(repr=False)
    rows: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int | None = None
    interrupted: bool = False
    seconds: float = 0.0

    @property
    def best(self) -> dict[str, Any] | None:
        """The row of the best epoch, None if no epoch ended."""
        return None if self.best_epoch is None else self.rows[self.best_epoch - 1]

    def __str__(self) -> str:
        """A line an epoch, the best one marked, accuracies in %."""
        lines = ["  epoch        lr  train loss  val accuracy  val loss  noise off       s"]
        for row in self.rows:
            mark = "*" if row["epoch"] == self.best_epoch else " "
            lines.append(
                f"{mark} {row['epoch']:5d}  {row['lr']:8.2e}  {row['train_loss']:10.4f}  {100 * row['val_accuracy']:12.2f}  "
                f"{row['val_loss']:8.4f}  {100 * row['val_clean']:9.2f}  {row['seconds']:6.1f}"
            )
        end = "interrupted" if self.interrupted else "done"
        lines.append(
            f"{end} after {self.seconds:.0f} s; "
            + ("no epoch ended" if self.best_epoch is None else f"* epoch {self.best_epoch} is kept")
        )
        return "\n".join(lines)

    def to_csv(self, path: str | PathLike) -> None:
        """Writes the rows as CSV, whole or not at all.

        Raises:
            OSError: the folder is missing or not writable.
        """
        write_csv(path, [COLUMNS, *([row[name] for name in COLUMNS] for row in self.rows)])


class NonFiniteLoss(ArithmeticError):
    """The training loss, or the weights, became NaN or infinite; `message` says where.

    Attributes:
        history: what was reached before; its model holds the best epoch's weights, or those the run began with.
    """

    def __init__(self, message: str, history: History) -> None:
        super().__init__(message)
        self.history = history
