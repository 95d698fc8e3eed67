"""The cells of an experiment. A cell is one network: panel, variant of a method, training sigma, training seed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from nft_ext import methods
from nft_ext._common.checks import fail, integer, number, one_of
from nft_ext.methods import BETAS, Method
from nft_ext.reproduce.panels import Panel, Scale, panel_named
from nft_ext.reproduce.settings import METHODS, SETTINGS

SNAPSHOTS = {"vgg8": 3, "resnet18": 4}  # N of IRS in the paper
FIGURE_METHODS = ("vanilla", "noise", "control", "censored", "correctnet", "correctnet+noise", "ovf", "irs")
EXPERIMENTS = ("figure3", "figure4", "table1", "table2", "convergence", "ablations", "protocol")


@dataclass(frozen=True)
class Cell:
    """One network to train and measure.

    Attributes:
        method: `Method.config()`.
        sigma: sigma of the training, None without noise.
        sigmas: sigmas of the evaluation.
        pretrained: epochs of vanilla training before the method's epochs.
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

    def __str__(self) -> str:
        where = "" if self.sigma is None else f", sigma {self.sigma:g}"
        return f"{self.panel.name}, {self.variant}{where}, seed {self.seed}"


# variant name -> method at a sigma
Variants = dict[str, Callable[[float], Method]]


def beta_of(method: str, panel: Panel) -> float:
    """The paper's beta. Digits are not in the paper and use MNIST's beta."""
    name = panel.name.replace("digits", "mnist")
    return BETAS[method][name]


def figure_variants(panel: Panel, names: Sequence[str]) -> Variants:
    """The lines of a figure, in the order of `names`. OVF (N = 3) and IRS share a control if their N is equal."""

    def ovf(sigma: float) -> Method:
        return methods.OVF(sigma=sigma, beta=beta_of("ovf", panel))

    def irs(sigma: float) -> Method:
        return methods.IRS(sigma=sigma, beta=beta_of("irs", panel))

    def both(sigma: float) -> Method:
        return methods.CorrectNet(base=methods.NoiseInjection(sigma=sigma))

    n = SNAPSHOTS[panel.model]
    controls: Variants = {"control": lambda sigma: methods.ScaledLogits(sigma=sigma, feedbacks=3)}
    if n != 3:
        controls = {
            "control-ovf": controls["control"],
            "control-irs": lambda sigma: methods.ScaledLogits(sigma=sigma, feedbacks=n),
        }
    found: Variants = {}
    for name in names:
        one_of("method", name, FIGURE_METHODS)
        if name == "control":
            found |= controls
        else:
            # censored: its noise before the cut has a chip's std, 0.7776 sigma max|W| at M = 8 and K = 2.
            found[name] = {
                "vanilla": lambda sigma: methods.Vanilla(),
                "noise": lambda sigma: methods.NoiseInjection(sigma=sigma),
                "censored": lambda sigma: methods.Censored(sigma=sigma, noise_sigma=0.7776 * sigma),
                "correctnet": lambda sigma: methods.CorrectNet(),
                "correctnet+noise": both,
                "ovf": ovf,
                "irs": irs,
            }[name]
    return found


def with_control(names: Sequence[str]) -> tuple[str, ...]:
    """`names`, with "control" added before the first method with feedback."""
    if "control" in names:
        return tuple(names)
    place = next((i for i, name in enumerate(names) if name in ("ovf", "irs")), None)
    return tuple(names) if place is None else (*names[:place], "control", *names[place:])


def number_variants(panel: Panel, control: bool = True) -> Variants:
    """OVF and IRS with N = 1 .. 5 feedbacks, and the control of each N."""
    ovf, irs = beta_of("ovf", panel), beta_of("irs", panel)
    found: Variants = {
        f"ovf n={n}": lambda sigma, n=n: methods.OVF(sigma=sigma, beta=ovf, feedbacks=n) for n in range(1, 6)
    }
    found |= {f"irs n={n}": lambda sigma, n=n: methods.IRS(sigma=sigma, beta=irs, feedbacks=n) for n in range(1, 6)}
    if control:
        found |= {
            f"control n={n}": lambda sigma, n=n: methods.ScaledLogits(sigma=sigma, feedbacks=n) for n in range(1, 6)
        }
    return found


def other_variants(panel: Panel, control: bool = True) -> Variants:
    """Reversed decay, reversed delta, noise-free classifiers, the published code's OVF, and what they compare with."""
    ovf, irs = beta_of("ovf", panel), beta_of("irs", panel)
    usual = ("ovf", "irs", "noise", "control") if control else ("ovf", "irs", "noise")
    return figure_variants(panel, usual) | {
        "ovf reversed decay": lambda sigma: methods.OVF(sigma=sigma, beta=ovf, reversed_decay=True),
        "irs reversed decay": lambda sigma: methods.IRS(sigma=sigma, beta=irs, reversed_decay=True),
        "ovf reversed delta": lambda sigma: methods.OVF(sigma=sigma, beta=ovf, delta=-0.05),
        "irs noise-free classifiers": lambda sigma: methods.IRS(sigma=sigma, beta=irs, noisy_classifiers=False),
        "ovf published": lambda sigma: methods.OVF(sigma=sigma, beta=ovf, published_variant=True),
    }


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

    Args:
        experiment: one of `EXPERIMENTS`.
        panel: a name of `PANELS`. None: the paper's panel.
        scale: size of the experiment.
        sigmas: None: the scale's or the paper's.
        names: methods. None: the scale's. Only for figure3, figure4 and convergence.
        seeds: number of training seeds. None: 10 for convergence, else the scale's.
        control: add the control of OVF and IRS: the same factor 1/(N+1), no feedback, equal epochs.

    Raises:
        ValueError: experiment, panel or method is unknown, a sigma is negative, or seeds < 1.
    """
    one_of("experiment", experiment, EXPERIMENTS)
    figures = experiment in ("figure3", "figure4")
    of_vgg8 = figures or experiment in ("convergence", "protocol")
    where = panel_named(panel or ("vgg8-mnist" if of_vgg8 else "resnet18-cifar10"))
    usual = scale.sigmas if figures else (0.35,) if of_vgg8 else (0.3,)
    at = tuple(number("sigma", sigma, low=0.0) for sigma in (sigmas or usual))
    count = integer("seeds", seeds, 1) if seeds is not None else 10 if experiment == "convergence" else scale.seeds
    if names is not None and not figures and experiment != "convergence":
        fail("--methods", "must be left out, because the experiment fixes its methods", ", ".join(names))
    found: list[Cell] = []
    for seed in range(count):
        if figures or experiment == "convergence":
            asked = names or (scale.methods if figures else ("noise", "control", "ovf", "irs"))
            asked = with_control(asked) if control else tuple(name for name in asked if name != "control")
            found += _each(where, figure_variants(where, asked), at, seed, scale)
        if experiment in ("table1", "ablations"):
            found += _each(where, number_variants(where, control), at, seed, scale)
        if experiment in ("table2", "ablations"):
            found += _pretrained(where, control, at, seed, scale)
        if experiment == "ablations":
            found += _each(where, other_variants(where, control), at, seed, scale)
        if experiment == "protocol":
            found += _settings(where, control, at, seed, scale)
    return list({(cell.variant, cell.key): cell for cell in found}.values())


def _each(panel: Panel, variants: Variants, sigmas: tuple[float, ...], seed: int, scale: Scale) -> Iterator[Cell]:
    without_noise = [name for name, make in variants.items() if make(0.1).sigma is None]
    for name in without_noise:
        yield Cell(panel, name, variants[name](0.1).config(), None, sigmas, seed, scale, scale.epochs)
    for sigma in sigmas:
        for name, make in variants.items():
            if name not in without_noise:
                yield Cell(panel, name, make(sigma).config(), sigma, (sigma,), seed, scale, scale.epochs)


def _pretrained(panel: Panel, control: bool, sigmas: tuple[float, ...], seed: int, scale: Scale) -> Iterator[Cell]:
    """OVF, IRS and their control from scratch, and after vanilla training with 1/4, 1/2 and all of the epochs."""
    vanilla = figure_variants(panel, ("vanilla",))
    yield from _each(panel, vanilla, sigmas, seed, scale)
    trained = figure_variants(panel, ("control", "ovf", "irs") if control else ("ovf", "irs"))
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
        return figure_variants(panel, [name for name in names if control or name != "control"])

    yield from _each(panel, named(METHODS), sigmas, seed, scale)
    for name, setting in SETTINGS.items():
        variants: Variants = {
            f"{method} {name}": lambda sigma, make=make, options=setting.options: _changed(make(sigma), options)
            for method, make in named(setting.methods).items()
        }
        yield from _each(panel, variants, sigmas, seed, setting.change(scale, panel))


def _changed(method: Any, options: dict[str, Any]) -> Method:
    return dataclasses.replace(method, **options)
