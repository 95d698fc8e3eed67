"""A setting of a method that a small search chooses: which values, on which training seeds, and which one won.

The search judges by validation images, and by training seeds that no report uses. So nothing that a report measures has
chosen the setting.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nft_ext._common.checks import fail

SEARCH_SEEDS = (1000,)  # reports use the training seeds below
VALIDATION = 0.1  # share of the training images that judges a search


@dataclass(frozen=True)
class Tuning:
    """The search for one option of a method.

    Attributes:
        option: name of the option.
        values: what it tries, in this order.
    """

    option: str
    values: tuple[float, ...]

    def config(self) -> dict[str, Any]:
        """What determines the choice, beside the cell's own configuration."""
        return {
            "option": self.option,
            "values": list(self.values),
            "seeds": list(SEARCH_SEEDS),
            "validation": VALIDATION,
        }


# Temperatures 1, 4, ..., 256; the paper's four betas.
TUNINGS = {
    "noise tuned": Tuning("logit_scale", (1.0, 1 / 4, 1 / 16, 1 / 64, 1 / 256)),
    "ovf tuned": Tuning("beta", (1e-1, 1e-2, 1e-3, 1e-4)),
    "irs tuned": Tuning("beta", (1e-1, 1e-2, 1e-3, 1e-4)),
}


@dataclass(frozen=True)
class Trial:
    """One value of a search: its mean validation accuracy and cross-entropy over the search's seeds."""

    value: float
    accuracy: float
    loss: float


def trial(value: float, found: Sequence[dict[str, Any]]) -> Trial | None:
    """The trial of a value from the finished cells of its trainings. None if one of them diverged."""
    best = [cell["training"]["best"] for cell in found if cell["training"]["diverged"] is None]
    if len(best) < len(found) or any(row is None for row in best):
        return None
    count = len(best)
    return Trial(value, sum(row["val_accuracy"] for row in best) / count, sum(row["val_loss"] for row in best) / count)


def chosen(tuning: Tuning, trials: Sequence[Trial | None]) -> dict[str, Any]:
    """The choice, JSON-able: highest validation accuracy, then lowest cross-entropy, then first in order.

    Raises:
        ValueError: every value had a training that diverged.
    """
    finished = [one for one in trials if one is not None]
    if not finished:
        fail(tuning.option, "must have a value whose trainings do not diverge", list(tuning.values))
    best = max(finished, key=lambda one: (one.accuracy, -one.loss))
    return {
        "option": tuning.option,
        "value": best.value,
        "seeds": list(SEARCH_SEEDS),
        "trials": [vars(one) for one in finished],
    }


def described(found: dict[str, Any]) -> str:
    """The choice in words. A factor on the logits is given as a temperature."""
    option, value = found["option"], found["value"]
    return f"temperature {1 / value:g}" if option == "logit_scale" else f"{option} {value:g}"
