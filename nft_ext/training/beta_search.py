"""The paper's choice of beta: one training a value, judged on the validation split."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from torch import nn

from nft_ext._common.checks import fail, number
from nft_ext._common.files import check_writable_target, write_atomically
from nft_ext._common.processes import is_main
from nft_ext.methods import Method
from nft_ext.training.fitting import fit
from nft_ext.training.history import History, NonFiniteLoss

BETAS = (1e-1, 1e-2, 1e-3, 1e-4)  # the four steps of arXiv 2305.14561
PATHS = ("checkpoint", "log", "state", "tensorboard")  # options of `fit` that name a file or folder of one run


@dataclass
class BetaSearch:
    """The outcome of `search_beta`.

    Attributes:
        histories: the finished run of each beta, in the order searched.
        diverged: what stopped a run whose loss became NaN or infinite, by beta; its best epoch does not take part.
        interrupted: stopped by Ctrl-C; betas that were not finished are in neither.
    """

    histories: dict[float, History] = field(default_factory=dict)
    diverged: dict[float, str] = field(default_factory=dict)
    interrupted: bool = False

    @property
    def beta(self) -> float | None:
        """The beta whose best epoch validates best; None before a run has finished.

        Highest validation accuracy, at equal accuracy the lowest validation cross-entropy, then the first.
        """
        return max(self.histories, key=lambda beta: _rank(self.histories[beta]), default=None)

    @property
    def best(self) -> History | None:
        """The run of that beta."""
        return None if self.beta is None else self.histories[self.beta]

    def to_dict(self) -> dict[str, Any]:
        """The chosen beta and the best epoch of each, JSON-able."""
        runs = {str(beta): history.best for beta, history in self.histories.items()}
        diverged = {str(beta): message for beta, message in self.diverged.items()}
        return {"beta": self.beta, "runs": runs, "diverged": diverged, "interrupted": self.interrupted}

    def __str__(self) -> str:
        """One line a beta."""
        lines = ["beta     validation accuracy   validation loss   epoch"]
        for beta, history in self.histories.items():
            best, mark = history.best, "  <- chosen" if beta == self.beta else ""
            figures = f"{100 * best['val_accuracy']:17.2f} %   {best['val_loss']:15.4f}   {best['epoch']:5d}"
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
    """Trains `model` once for each beta, from the same weights with the same seed, and keeps the best on `validation`.

    No test set is seen. Ctrl-C ends the search; what was finished is returned. With `state`, the same call continues
    it: finished runs return at once.

    Args:
        model, train, validation: as `fit` takes them.
        method: OVF or IRS, or CorrectNet around one; its own beta plays no part.
        betas: the values, each once.
        checkpoint: file for the weights of the best run so far; those of each run go beside it, "-beta0.1" in the name.
        options: all others of `fit`. Files that it names (log, state, tensorboard) get each run's beta in their names.

    Raises:
        ValueError: a method without beta, betas negative, doubled or none; what `fit` raises for bad arguments.
        NonFiniteLoss: every run diverged.
    """
    betas = tuple(number(f"betas[{n}]", beta, low=0.0) for n, beta in enumerate(betas))
    if not betas or len(set(betas)) < len(betas):
        fail("betas", "must hold at least one value, each once", betas)
    runs = {beta: with_beta(method, beta) for beta in betas}
    target = None if checkpoint is None else check_writable_target("checkpoint", checkpoint)
    found, failure = BetaSearch(), None
    for beta, candidate in runs.items():
        paths = {
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
        if target is not None and found.beta == beta and is_main():  # on other ranks the file may not be there yet
            write_atomically(target, Path(paths["checkpoint"]).read_bytes())
    if failure is not None and len(found.diverged) == len(betas):
        raise failure
    return found


def with_beta(method: Method, beta: float) -> Method:
    """`method` with another beta; of CorrectNet, that of its base.

    Raises:
        ValueError: a method without beta.
    """
    names = {f.name for f in dataclasses.fields(method)}  # type: ignore[arg-type]
    if "beta" in names:
        return dataclasses.replace(method, beta=beta)  # type: ignore[type-var]
    if "base" in names:
        return dataclasses.replace(method, base=with_beta(method.base, beta))  # type: ignore[attr-defined, type-var]
    fail("method", "must have a beta to search (ovf, irs)", method.name)


def beside(path: str | PathLike, beta: float) -> Path:
    """The path of one run's file: "out.safetensors" -> "out-beta0.1.safetensors"."""
    path = Path(path)
    return path.with_name(f"{path.stem}-beta{beta:g}{path.suffix}")


def _rank(history: History) -> tuple[float, float]:
    best = history.best
    return best["val_accuracy"], -best["val_loss"]
