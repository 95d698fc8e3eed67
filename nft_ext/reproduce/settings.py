"""Settings in which a run may differ from the paper's: changed one at a time, do they move the ranking?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from nft_ext.reproduce.panels import Panel, Scale

METHODS = ("noise", "control", "ovf", "irs")


@dataclass(frozen=True)
class Setting:
    """change: the scale, at a panel, with the setting changed. options: of the method. methods: those it concerns."""

    change: Callable[[Scale, Panel], Scale] = lambda scale, panel: scale
    options: dict[str, Any] = field(default_factory=dict)
    methods: tuple[str, ...] = METHODS


def _rate(factor: float) -> Callable[[Scale, Panel], Scale]:
    return lambda scale, panel: scale.replace(lr=factor * scale.recipe(panel).lr)


SETTINGS = {
    "lr x4": Setting(_rate(4.0)),
    "lr /4": Setting(_rate(0.25)),
    # The other methods' forwards all move BatchNorm's running statistics anyway.
    "feedback statistics": Setting(options={"feedback_updates_statistics": True}, methods=("ovf",)),
    "last epoch": Setting(lambda scale, panel: scale.replace(selection="last")),
    "test selection": Setting(lambda scale, panel: scale.replace(selection="test")),
    "epochs x3": Setting(lambda scale, panel: scale.replace(epochs=3 * scale.epochs)),
}
