"""Settings of the training for the protocol study. It changes one at a time and compares the ranking of the methods.

A setting that changes nothing at the experiment's scale is left out (`grid`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from nft_ext.reproduce.panels import Panel, Scale

BASE = "as it is"  # the name of the unchanged training
METHODS = ("noise", "control", "ovf", "irs")


@dataclass(frozen=True)
class Setting:
    """A changed setting.

    Attributes:
        change: maps the scale, at a panel, to the changed one.
        options: changed options of the method.
        methods: the methods that the setting concerns.
    """

    change: Callable[[Scale, Panel], Scale] = lambda scale, panel: scale
    options: dict[str, Any] = field(default_factory=dict)
    methods: tuple[str, ...] = METHODS


def _rate(factor: float) -> Callable[[Scale, Panel], Scale]:
    return lambda scale, panel: scale.replace(lr=factor * scale.recipe(panel).lr)


SETTINGS = {
    "lr x4": Setting(_rate(4.0)),
    "lr /4": Setting(_rate(0.25)),
    # In the other methods every forward updates BatchNorm's running statistics.
    "feedback statistics": Setting(options={"feedback_updates_statistics": True}, methods=("ovf",)),
    "last epoch": Setting(lambda scale, panel: scale.replace(selection="last")),
    "test selection": Setting(lambda scale, panel: scale.replace(selection="published")),
    "epochs x3": Setting(lambda scale, panel: scale.replace(epochs=3 * scale.epochs)),
    # Ours, one at a time. In our own setting these change nothing and are left out.
    "our start": Setting(lambda scale, panel: scale.replace(init="default")),
    "our pixels": Setting(lambda scale, panel: scale.replace(normalisation="default")),
    "our selection": Setting(lambda scale, panel: scale.replace(selection="validation", validation=0.1)),
    "our schedule": Setting(lambda scale, panel: scale.replace(schedule="cosine")),
    "our statistics": Setting(options={"feedback_updates_statistics": False}, methods=("ovf",)),
}
