"""Files written after each epoch: the CSV log, TensorBoard's events, the best epoch's checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any

from nft_ext._common.files import check_writable_target, make_writable_folder, remove_leftovers
from nft_ext.training.checkpoint import save
from nft_ext.training.history import History


class Outputs:
    """The files of one training. Only the first rank writes; the other ranks pass None for all paths.

    Args:
        log: CSV file, rewritten after each epoch.
        checkpoint: file for the best epoch's weights, rewritten at each better epoch.
        tensorboard: folder for TensorBoard's event files.
        notes: metadata of the checkpoint.

    Raises:
        ValueError, FileNotFoundError: a path cannot be written.
        ImportError: `tensorboard` is given but the package is not installed.
    """

    def __init__(
        self,
        log: str | PathLike | None,
        checkpoint: str | PathLike | None,
        tensorboard: str | PathLike | None,
        notes: Mapping[str, Any],
    ) -> None:
        self.log, self.checkpoint, self.notes = log, checkpoint, notes
        for argument, path in (("log", log), ("checkpoint", checkpoint)):
            if path is not None:
                remove_leftovers(check_writable_target(argument, path))
        self._folder = None if tensorboard is None else make_writable_folder("tensorboard", tensorboard)
        self._writer_class = None if tensorboard is None else summary_writer()
        self._writer = None

    def begin(self, history: History) -> None:
        """Rewrites the files from `history`: a kill can leave them older or newer than the state."""
        if self._writer_class is not None:
            self._writer = self._writer_class(str(self._folder), purge_step=len(history.rows) + 1)
        if history.rows:
            self.write(history, better=True)

    def epoch(self, history: History, better: bool) -> None:
        """Writes the row of the last epoch; `better` means that it is the best so far."""
        if self._writer is not None:
            row = history.rows[-1]
            for name in history.columns[1:]:
                self._writer.add_scalar(name.replace("_", "/", 1), row[name], row["epoch"])
            self._writer.flush()
        self.write(history, better)

    def write(self, history: History, better: bool) -> None:
        """Writes the log, and the checkpoint if the epoch is better."""
        if better and self.checkpoint is not None:
            meta = {**self.notes, "epoch": history.best_epoch, "validation": history.best}
            save(self.checkpoint, history.model, meta)
        if self.log is not None:
            history.to_csv(self.log)

    def close(self) -> None:
        """Closes TensorBoard's file."""
        if self._writer is not None:
            self._writer.close()


def summary_writer() -> type:
    """The class of TensorBoard's writer.

    Raises:
        ImportError: tensorboard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError("tensorboard: needs a package that is not installed; run: pip install tensorboard") from error
    return SummaryWriter
