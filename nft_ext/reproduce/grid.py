"""The cells of an experiment. A cell is one network: panel, variant of a method, training sigma, training seed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from nft_ext import methods
from nft_ext._common.checks import fail, integer, number, one_of
from nft_ext.methods import Method
from nft_ext.reproduce.panels import Panel, Scale, panel_named
from nft_ext.reproduce.settings import METHODS, SETTINGS
from nft_ext.reproduce.tuning import SEARCH_SEEDS, TUNINGS, VALIDATION, Tuning
from nft_ext.reproduce.variants import (
    EPOCHS,
    Variants,
    figure_variants,
    number_variants,
    other_variants,
    with_control,
)

EXPERIMENTS = ("figure3", "figure4", "table1", "table2", "convergence", "ablations", "protocol")


@dataclass(frozen=True)
class Cell:
    """One network to train and measure.

    Attributes:
        method: `Method.config()`.
        sigma: sigma of the training, None without noise.
        sigmas: sigmas of the evaluation.
        pretrained: epochs of vanilla training before the method's epochs.
        tuning: the search that chooses one option of the method, which `method` leaves at None. None: no search.
    """

    panel: Panel
    variant: str
    method: dict[str, Any]
    sigma: float | None
    sigmas: tuple[float, ...]
    seed: int
    scale: Scale
    epochs: int
    pretrained: int = 0
    tuning: Tuning | None = None

    def config(self) -> dict[str, Any]:
        """Everything that determines the result. The report reads it, and the key hashes it."""
        recipe = self.scale.replace(epochs=self.epochs).recipe(self.panel)
        return {
            "panel": self.panel.name,
            "variant": self.variant,
            "method": self.method,
            "sigma": self.sigma,
            "sigmas": list(self.sigmas),
            "seed": self.seed,
            "model": self.panel.model,
            "dataset": self.panel.dataset,
            "width": self.scale.width,
            **dataclasses.asdict(recipe),
            "train_images": self.scale.train_images,
            "test_images": self.scale.test_images,
            "runs": self.scale.runs,
            "validation": self.scale.validation,
            "validation_chips": self.scale.validation_chips,
            "pretrained": self.pretrained,
            # Recorded only if unusual, so the keys of older cells stay valid.
            **({} if self.scale.selection == "validation" else {"selection": self.scale.selection}),
            **({} if self.scale.init == "default" else {"init": self.scale.init}),
            **({} if self.scale.normalisation == "default" else {"normalisation": self.scale.normalisation}),
            **({} if self.tuning is None else {"tuning": self.tuning.config()}),
        }

    @property
    def key(self) -> str:
        """A readable name and a hash of the whole configuration."""
        # The variant only names a line of a figure. Without it, figures and ablations share their cells.
        content = {k: v for k, v in self.config().items() if k != "variant"}
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]
        where = "" if self.sigma is None else f"-sigma{self.sigma:g}"
        return f"{self.panel.name}-{self.method['name']}{where}-seed{self.seed}-{digest}"

    def start(self) -> Cell | None:
        """The cell of the vanilla network that a pretrained one starts from, else None."""
        if not self.pretrained:
            return None
        return Cell(
            self.panel, "vanilla", methods.Vanilla().config(), None, self.sigmas, self.seed, self.scale, self.pretrained
        )

    def trials(self) -> list[tuple[float, list[Cell]]]:
        """The trainings of the cell's search: (value, one cell per seed of the search). They see no test image."""
        if self.tuning is None:
            return []
        scale = self.scale.replace(selection="validation", validation=VALIDATION)
        return [
            (
                value,
                [
                    dataclasses.replace(
                        self,
                        variant=f"search for {self.variant}, {self.tuning.option} {value:g}",
                        method=self.with_option(value),
                        sigmas=(),
                        seed=seed,
                        scale=scale,
                        tuning=None,
                    )
                    for seed in SEARCH_SEEDS
                ],
            )
            for value in self.tuning.values
        ]

    def with_option(self, value: float) -> dict[str, Any]:
        """`method` with the option of the search at `value`."""
        return self.method if self.tuning is None else self.method | {self.tuning.option: value}

    def __str__(self) -> str:
        where = "" if self.sigma is None else f", sigma {self.sigma:g}"
        return f"{self.panel.name}, {self.variant}{where}, seed {self.seed}"


def cells(
    experiment: str,
    panel: str | None,
    scale: Scale,
    sigmas: Sequence[float] | None = None,
    names: Sequence[str] | None = None,
    seeds: int | None = None,
    control: bool = True,
) -> list[Cell]:
    """The cells of an experiment, seed by seed, so that an unfinished report already shows every line.

    - figure3, figure4: accuracy and EKL against sigma, from the same networks. A noisy method has one network per
      sigma. Vanilla and CorrectNet have one network, measured at every sigma.
    - table1: number of feedbacks N. table2: pretrained start. Our source does not number the paper's tables.
    - convergence: one sigma, ten seeds.
    - ablations: table1, table2, and the reversed, noise-free and published variants.
    - protocol: one sigma, one setting of the training changed at a time.

    The searches of tuned methods are not among them, see `searches`.

    Args:
        experiment: one of `EXPERIMENTS`.
        panel: a name of `PANELS`. None: the paper's panel.
        scale: size of the experiment.
        sigmas: None: the scale's or the paper's.
        names: methods. None: the scale's. Only for figure3, figure4 and convergence.
        seeds: number of training seeds. None: 10 for convergence, else the scale's.
        control: add the control of OVF and IRS: the same factor 1/(N+1), no feedback, equal epochs.

    Raises:
        ValueError: experiment, panel or method is unknown, a sigma is negative, seeds < 1, or a seed is one of the
            searches'.
    """
    one_of("experiment", experiment, EXPERIMENTS)
    figures = experiment in ("figure3", "figure4")
    of_vgg8 = figures or experiment in ("convergence", "protocol")
    where = panel_named(panel or ("vgg8-mnist" if of_vgg8 else "resnet18-cifar10"))
    usual = scale.sigmas if figures else (0.35,) if of_vgg8 else (0.3,)
    at = tuple(number("sigma", sigma, low=0.0) for sigma in (sigmas or usual))
    count = integer("seeds", seeds, 1) if seeds is not None else 10 if experiment == "convergence" else scale.seeds
    if count > min(SEARCH_SEEDS):
        fail("seeds", f"must be <= {min(SEARCH_SEEDS)}, because seeds from there choose settings", count)
    if names is not None and not figures and experiment != "convergence":
        fail("--methods", "must be left out, because the experiment fixes its methods", ", ".join(names))
    found: list[Cell] = []
    for seed in range(count):
        if figures or experiment == "convergence":
            asked = names or (scale.methods if figures else ("noise", "control", "ovf", "irs"))
            asked = with_control(asked) if control else tuple(name for name in asked if name != "control")
            found += _each(where, figure_variants(where, asked, scale.published_ovf), at, seed, scale)
        if experiment in ("table1", "ablations"):
            found += _each(where, number_variants(where, scale.published_ovf, control), at, seed, scale)
        if experiment in ("table2", "ablations"):
            found += _pretrained(where, control, at, seed, scale)
        if experiment == "ablations":
            found += _each(where, other_variants(where, scale.published_ovf, control), at, seed, scale)
        if experiment == "protocol":
            found += _settings(where, control, at, seed, scale)
    return list({(cell.variant, cell.key): cell for cell in found}.values())


def searches(found: Sequence[Cell]) -> list[Cell]:
    """The trainings that choose the settings of the tuned cells in `found`, each once."""
    return list({cell.key: cell for one in found for _, trials in one.trials() for cell in trials}.values())


def _each(panel: Panel, variants: Variants, sigmas: tuple[float, ...], seed: int, scale: Scale) -> Iterator[Cell]:
    without_noise = [name for name, make in variants.items() if make(0.1).sigma is None]
    for name in without_noise:
        yield Cell(panel, name, variants[name](0.1).config(), None, sigmas, seed, scale, scale.epochs)
    for sigma in sigmas:
        for name, make in variants.items():
            if name not in without_noise:
                tuning = TUNINGS.get(name)
                method = make(sigma).config() | ({} if tuning is None else {tuning.option: None})
                epochs = EPOCHS.get(name, 1) * scale.epochs
                yield Cell(panel, name, method, sigma, (sigma,), seed, scale, epochs, tuning=tuning)


def _pretrained(panel: Panel, control: bool, sigmas: tuple[float, ...], seed: int, scale: Scale) -> Iterator[Cell]:
    """OVF, IRS and their control from scratch, and after vanilla training with 1/4, 1/2 and all of the epochs."""
    vanilla = figure_variants(panel, ("vanilla",), scale.published_ovf)
    yield from _each(panel, vanilla, sigmas, seed, scale)
    names = ("control", "ovf", "irs") if control else ("ovf", "irs")
    trained = figure_variants(panel, names, scale.published_ovf)
    yield from _each(panel, trained, sigmas, seed, scale)
    for sigma in sigmas:
        for name, make in trained.items():
            for share in (0.25, 0.5, 1.0):
                epochs = max(1, round(share * scale.epochs))
                yield Cell(
                    panel,
                    f"{name} pretrained, {200 * share:g}/200 epochs",
                    make(sigma).config(),
                    sigma,
                    (sigma,),
                    seed,
                    scale,
                    epochs,
                    scale.epochs,
                )


def _settings(panel: Panel, control: bool, sigmas: tuple[float, ...], seed: int, scale: Scale) -> Iterator[Cell]:
    """The methods without a change, then under each setting. Variants are named "METHOD SETTING"."""

    def named(names: Sequence[str]) -> Variants:
        asked = [name for name in names if control or name != "control"]
        return figure_variants(panel, asked, scale.published_ovf)

    usual = list(_each(panel, named(METHODS), sigmas, seed, scale))
    yield from usual
    for name, setting in SETTINGS.items():
        variants: Variants = {
            f"{method} {name}": lambda sigma, make=make, options=setting.options: _changed(make(sigma), options)
            for method, make in named(setting.methods).items()
        }
        changed = _each(panel, variants, sigmas, seed, setting.change(scale, panel))
        yield from (cell for cell in changed if cell.key not in {one.key for one in usual})


def _changed(method: Any, options: dict[str, Any]) -> Method:
    return dataclasses.replace(method, **options)
