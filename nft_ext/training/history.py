"""The result of a training: the plain model of the best epoch and one row of figures per epoch."""

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
        model: the plain backbone in eval mode, with the weights of the best epoch (see `fit`). If no epoch ended
            before an interrupt, it has the weights at the interrupt.
        rows: one dict per epoch: epoch (from 1), lr (of its last step), train_loss (mean over its images),
            val_accuracy and val_loss (these choose the best epoch), val_clean (accuracy with the noise off), seconds. A
            training by a criterion has val_metric, if a metric was given, in place of val_accuracy; val_clean is then
            the metric or the loss with the noise off.
        higher_is_better: whether a larger val_metric is better.
        best_epoch: the epoch of `model`, None if no epoch ended.
        interrupted: True after Ctrl-C.
        seconds: wall-clock time in s. For a resumed training it includes the saved time of earlier processes.
    """

    model: nn.Module = field(repr=False)
    rows: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int | None = None
    interrupted: bool = False
    seconds: float = 0.0
    higher_is_better: bool = True

    @property
    def best(self) -> dict[str, Any] | None:
        """The row of the best epoch, None if no epoch ended."""
        return None if self.best_epoch is None else self.rows[self.best_epoch - 1]

    def __str__(self) -> str:
        """One line per epoch, accuracies in %. An asterisk marks the best epoch."""
        judged = {"val_accuracy": "  val accuracy", "val_metric": "    val metric"}
        title = next((judged[name] for name in self.columns if name in judged), "")
        lines = [f"  epoch        lr  train loss{title}  val loss  noise off       s"]
        for row in self.rows:
            mark = "*" if row["epoch"] == self.best_epoch else " "
            figure = "".join(f"  {_shown(row, name, 12)}" for name in judged if name in row)
            lines.append(
                f"{mark} {row['epoch']:5d}  {row['lr']:8.2e}  {row['train_loss']:10.4f}{figure}  "
                f"{row['val_loss']:8.4f}  {_shown(row, 'val_clean', 9)}  {row['seconds']:6.1f}"
            )
        end = "interrupted" if self.interrupted else "done"
        lines.append(
            f"{end} after {self.seconds:.0f} s; "
            + ("no epoch ended" if self.best_epoch is None else f"* epoch {self.best_epoch} is kept")
        )
        return "\n".join(lines)

    def to_csv(self, path: str | PathLike) -> None:
        """Writes the rows as CSV, atomically.

        Raises:
            OSError: the folder is missing or not writable.
        """
        write_csv(path, [self.columns, *([row[name] for name in self.columns] for row in self.rows)])

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of a row's figures."""
        return tuple(self.rows[0]) if self.rows else COLUMNS

    def rank(self, row: dict[str, Any]) -> tuple[float, float]:
        """What orders epochs: the larger, the better."""
        metric = row.get("val_accuracy", row.get("val_metric", 0.0))
        return metric if self.higher_is_better else -metric, -row["val_loss"]


def _shown(row: dict[str, Any], name: str, width: int) -> str:
    """A figure of a row: an accuracy in %, else as it is."""
    return f"{100 * row[name]:{width}.2f}" if "val_accuracy" in row else f"{row[name]:{width}.4f}"


class NonFiniteLoss(ArithmeticError):
    """The training loss or a weight became NaN or infinite; the message names the epoch.

    Attributes:
        history: the epochs before. Its model has the weights of the best epoch, or the initial weights.
    """

    def __init__(self, message: str, history: History) -> None:
        super().__init__(message)
        self.history = history
