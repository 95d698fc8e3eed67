"""The panels of the paper's figures, and presets for the size of an experiment."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from nft_ext._common.bfloat16 import PRECISIONS
from nft_ext._common.checks import fail, integer, number, one_of
from nft_ext._common.initialisation import INITS
from nft_ext.data import NORMALISATIONS
from nft_ext.training import Recipe

SELECTIONS = ("validation", "last", "published")
SIGMAS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4)


@dataclass(frozen=True)
class Panel:
    """A network on a data set, named "NETWORK-DATASET"."""

    name: str
    model: str
    dataset: str


# Six from Figure 3 of arXiv 2305.14561, and two on digits for trials, which need no files.
PANELS = {
    f"{model}-{dataset}": Panel(f"{model}-{dataset}", model, dataset)
    for model, dataset in (
        ("vgg8", "mnist"),
        ("vgg8", "cifar10"),
        ("resnet18", "mnist"),
        ("resnet18", "cifar10"),
        ("resnet18", "cifar100"),
        ("resnet18", "tinyimagenet"),
        ("vgg8", "digits"),
        ("resnet18", "digits"),
    )
}


def panel_named(name: str) -> Panel:
    """The panel called `name`.

    Raises:
        ValueError: the name is unknown. The message suggests near names.
    """
    return PANELS[one_of("panel", name, PANELS)]


@dataclass(frozen=True)
class Scale:
    """The size of an experiment. Every cell records it.

    Attributes:
        width: factor on the networks' channel counts.
        epochs, batch_size, lr: of a training. lr None: the paper's.
        train_images, test_images: how many images, evenly spaced over the set. None: all.
        runs: chips per network and sigma.
        validation: share of the training images for validation. 0: all images train.
        validation_chips: chips that judge an epoch.
        selection: the epoch to keep: "validation" (best on the validation images), "last", or "published" (best on the
            test images, with a new chip per 128 images, as in the published code).
        init, normalisation: "default" or "published", see `nft_ext.models.build` and `nft_ext.data.load`.
        schedule: of the learning rate, see `nft_ext.training.Recipe`. None: the recipe's.
        published_ovf: OVF with the published code's rules, see `grid.ovf_of`.
        precision, channels_last: of the training, see `nft_ext.training.Recipe`. The evaluation is in float32.
        seeds: number of training seeds.
        sigmas, methods: of a figure, unless the command names others.
    """

    width: float = 1.0
    epochs: int = 200
    batch_size: int = 128
    lr: float | None = None
    train_images: int | None = None
    test_images: int | None = None
    runs: int = 200
    validation: float = 0.1
    validation_chips: int = 4
    selection: str = "validation"
    init: str = "default"
    normalisation: str = "default"
    schedule: str | None = None
    published_ovf: bool = False
    precision: str = "float32"
    channels_last: bool = False
    seeds: int = 1
    sigmas: tuple[float, ...] = SIGMAS
    methods: tuple[str, ...] = ("vanilla", "noise", "control", "correctnet", "ovf", "irs")

    def __post_init__(self) -> None:
        if number("width", self.width) <= 0:
            fail("width", "must be > 0", self.width)
        integer("epochs", self.epochs, 1)
        integer("batch_size", self.batch_size, 1)
        integer("runs", self.runs, 2)
        integer("seeds", self.seeds, 1)
        for argument in ("train_images", "test_images"):
            if getattr(self, argument) is not None:
                integer(argument, getattr(self, argument), 20)
        one_of("selection", self.selection, SELECTIONS)
        one_of("init", self.init, INITS)
        one_of("normalisation", self.normalisation, NORMALISATIONS)
        if number("validation", self.validation, 0.0) == 0.0 and self.selection == "validation":
            fail("validation", "must be > 0 if the validation images select the epoch", self.validation)
        one_of("precision", self.precision, PRECISIONS)
        for sigma in self.sigmas:
            number("sigma", sigma, low=0.0)

    def replace(self, **changes: Any) -> Scale:
        """A copy with changed numbers. None means unchanged."""
        return dataclasses.replace(self, **{name: value for name, value in changes.items() if value is not None})

    def recipe(self, panel: Panel) -> Recipe:
        """The training recipe of a panel at this size."""
        changes = {name: getattr(self, name) for name in ("epochs", "batch_size", "precision", "channels_last")}
        given = {name: value for name in ("lr", "schedule") if (value := getattr(self, name)) is not None}
        return Recipe.paper(panel.model, panel.dataset, **changes, **given)


PRESETS = {
    "smoke": Scale(
        width=0.0625,
        epochs=1,
        batch_size=64,
        lr=2e-3,
        train_images=500,
        test_images=100,
        runs=4,
        sigmas=(0.1, 0.3),
        methods=("vanilla", "noise", "control", "ovf", "irs"),
    ),
    "quick": Scale(
        width=0.125,
        epochs=5,
        batch_size=32,
        lr=2e-3,
        train_images=3000,
        test_images=400,
        runs=30,
        validation_chips=2,
        seeds=5,
        sigmas=(0.2, 0.3, 0.35),
        methods=("vanilla", "noise", "control", "ovf", "irs"),
    ),
    "paper": Scale(),
}
