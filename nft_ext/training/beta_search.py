"""The paper's choice of beta: one training per value, compared on the validation images."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from torch import nn

from nft_ext._common.checks import fail, file_path, instance, items, number
from nft_ext._common.files import check_writable_target, number_in_name, write_atomically
from nft_ext._common.processes import is_main
from nft_ext.methods import Method
from nft_ext.training.fitting import fit
from nft_ext.training.history import History, NonFiniteLoss

BETAS = (1e-1, 1e-2, 1e-3, 1e-4)  # the four steps of arXiv 2305.14561
PATHS = ("checkpoint", "log", "state", "tensorboard")  # arguments of `fit` that name a file or folder


@dataclass
class BetaSearch:
    """The outcome of `search_beta`.

    Attributes:
        histories: beta -> finished training, in the order searched.
        diverged: beta -> error message, for trainings whose loss became NaN or infinite. They cannot be chosen.
        interrupted: True after Ctrl-C. Unfinished betas are in neither dict.
    """

    histories: dict[float, History] = field(default_factory=dict)
    diverged: dict[float, str] = field(default_factory=dict)
    interrupted: bool = False

    @property
    def beta(self) -> float | None:
        """The chosen beta, None if no training has finished.

        The best validation accuracy or metric wins, then the lowest validation loss, then the first in order.
        """
        return max(self.histories, key=lambda beta: _rank(self.histories[beta]), default=None)

    @property
    def best(self) -> History | None:
        """The training of the chosen beta."""
        return None if self.beta is None else self.histories[self.beta]

    def to_dict(self) -> dict[str, Any]:
        """The chosen beta and the best epoch of every beta, JSON-able."""
        runs = {str(beta): history.best for beta, history in self.histories.items()}
        diverged = {str(beta): message for beta, message in self.diverged.items()}
        return {"beta": self.beta, "runs": runs, "diverged": diverged, "interrupted": self.interrupted}

    def __str__(self) -> str:
        """One line per beta."""
        named = [name for history in self.histories.values() for name in _best_row(history)]
        title = "  validation metric" if "val_metric" in named else "validation accuracy"
        lines = [
            f"beta     {title if 'val_metric' in named or 'val_accuracy' in named else ''}   validation loss   epoch"
        ]
        for beta, history in self.histories.items():
            best, mark = _best_row(history), "  <- chosen" if beta == self.beta else ""
            figure = f"{100 * best['val_accuracy']:17.2f} %" if "val_accuracy" in best else ""
            figure = f"{best['val_metric']:19.4f}" if "val_metric" in best else figure
            figures = f"{figure}   {best['val_loss']:15.4f}   {best['epoch']:5d}"
            lines.append(f"{beta:<8g} {figures}{mark}")
        lines += [f"{beta:<8g} diverged" for beta in self.diverged]
        return "\n".join(lines)


def search_beta(
    model: nn.Module,
    method: Method,
    train: Any,
    validation: Any,
    *,
    betas: Sequence[float] = BETAS,
    checkpoint: str | PathLike | None = None,
    **options: Any,
) -> BetaSearch:
    """Trains `model` once per beta and keeps the beta that is best on `validation`.

    All trainings begin with the same weights and the same seed. The search sees no test set. Ctrl-C ends the search and
    returns the finished trainings. With `state`, the same call continues the search without repeating them.

    Args:
        model, train, validation: as for `fit`.
        method: OVF or IRS, or CorrectNet around one. Its own beta is ignored.
        betas: the values to try, each once.
        checkpoint: file for the weights of the best training so far. The file of each training lies beside it, with
            for example "-beta0.1" in its name.
        options: other arguments of `fit`. The paths log, state and tensorboard get the beta in their names, too.

    Returns:
        The trainings and the chosen beta.

    Raises:
        TypeError: method is no method, or betas is no list.
        ValueError: the method has no beta; betas are empty, negative or repeated; what `fit` raises for bad arguments.
        NonFiniteLoss: every training diverged.
    """
    instance("method", method, Method, "an object of nft_ext.methods")
    betas = tuple(number(f"betas[{n}]", beta, low=0.0) for n, beta in enumerate(items("betas", betas, "numbers")))
    if not betas or len(set(betas)) < len(betas):
        fail("betas", "must hold at least one value, each once", betas)
    runs = {beta: with_beta(method, beta) for beta in betas}
    target = None if checkpoint is None else check_writable_target("checkpoint", file_path("checkpoint", checkpoint))
    found, failure = BetaSearch(), None
    for beta, candidate in runs.items():
        paths: dict[str, Any] = {
            name: beside(path, beta)
            for name, path in (options | {"checkpoint": target}).items()
            if name in PATHS and path is not None
        }
        try:
            history = fit(model, candidate, train, validation, **(options | paths))
        except NonFiniteLoss as error:
            found.diverged[beta], failure = str(error), error
            continue
        if history.interrupted:
            found.interrupted = True
            break
        found.histories[beta] = history
        if target is not None and found.beta == beta and is_main():  # the first rank wrote the file
            write_atomically(target, Path(paths["checkpoint"]).read_bytes())
    if failure is not None and len(found.diverged) == len(betas):
        raise failure
    return found


def with_beta(method: Method, beta: float) -> Method:
    """`method` with another beta. For CorrectNet, the beta of its base changes.

    Raises:
        ValueError: the method has no beta.
    """
    options: Any = method  # any dataclass with a field "beta", also one of the user's
    names = {field.name for field in dataclasses.fields(options)}
    if "beta" in names:
        return dataclasses.replace(options, beta=beta)
    if "base" in names:
        return dataclasses.replace(options, base=with_beta(options.base, beta))
    return fail("method", "must have a beta to search (ovf, irs)", method.name)


def beside(path: str | PathLike, beta: float) -> Path:
    """The file name of one training: "out.safetensors" -> "out-beta0.1.safetensors"."""
    path = Path(path)
    return path.with_name(f"{path.stem}-beta{number_in_name(beta)}{path.suffix}")


def _rank(history: History) -> tuple[float, float]:
    return history.rank(_best_row(history))


def _best_row(history: History) -> dict[str, Any]:
    best = history.best
    assert best is not None, "a finished training has at least one epoch"
    return best
