"""The methods that an experiment compares, by the name of their line in a figure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from nft_ext import methods
from nft_ext._common.checks import one_of
from nft_ext.methods import BETAS, Method
from nft_ext.reproduce.panels import Panel

SNAPSHOTS = {"vgg8": 3, "resnet18": 4}  # N of IRS in the paper
FEEDBACKS = 3  # N of OVF in the paper
# name on the command line -> name of the line. The last six are controls that decide whether feedback helps.
LINES = {
    name: name for name in ("vanilla", "noise", "control", "censored", "correctnet", "correctnet+noise", "ovf", "irs")
} | {
    "tuned": "noise tuned",
    "compute": "noise compute",
    "ovf-tuned": "ovf tuned",
    "irs-tuned": "irs tuned",
    "ovf-positive": "ovf positive",
    "irs-positive": "irs positive",
}
FIGURE_METHODS = tuple(LINES)
EPOCHS = {"noise compute": FEEDBACKS + 1}  # times the epochs of the others: as many forwards as OVF

# variant name -> method at a sigma
Variants = dict[str, Callable[[float], Method]]


def beta_of(method: str, panel: Panel) -> float:
    """The paper's beta. Digits are not in the paper and use MNIST's beta."""
    name = panel.name.replace("digits", "mnist")
    return BETAS[method][name]


def ovf_of(panel: Panel, published: bool) -> methods.OVF:
    """The paper's OVF at sigma 0, to be changed.

    Args:
        panel: gives beta.
        published: as the published code. Feedback forwards move BatchNorm's running statistics, and on ResNet-18 the
            larger sigma reaches the first and the last layer only.
    """
    return methods.OVF(
        sigma=0.0,
        beta=beta_of("ovf", panel),
        feedback_updates_statistics=published,
        published_variant=published and panel.model == "resnet18",
    )


def figure_variants(panel: Panel, names: Sequence[str], published: bool) -> Variants:
    """The lines of a figure, in the order of `names`. OVF (N = 3) and IRS share a control if their N is equal.

    Args:
        panel: gives the betas and N of IRS.
        names: keys of `LINES`.
        published: OVF as in the published code.
    """

    def noise(sigma: float) -> Method:
        return methods.NoiseInjection(sigma=sigma)

    def ovf(sigma: float, sign: int = 1) -> Method:
        usual = ovf_of(panel, published)
        return replace(usual, sigma=sigma, beta=sign * usual.beta)

    def irs(sigma: float, sign: int = 1) -> Method:
        return methods.IRS(sigma=sigma, beta=sign * beta_of("irs", panel))

    n = SNAPSHOTS[panel.model]
    controls: Variants = {"control": lambda sigma: methods.ScaledLogits(sigma=sigma, feedbacks=FEEDBACKS)}
    if n != FEEDBACKS:
        controls = {
            "control-ovf": controls["control"],
            "control-irs": lambda sigma: methods.ScaledLogits(sigma=sigma, feedbacks=n),
        }
    makers: Variants = {
        "vanilla": lambda sigma: methods.Vanilla(),
        "noise": noise,
        # Its noise before the cut has a chip's std, 0.7776 sigma max|W| at M = 8 and K = 2.
        "censored": lambda sigma: methods.Censored(sigma=sigma, noise_sigma=0.7776 * sigma),
        "correctnet": lambda sigma: methods.CorrectNet(),
        "correctnet+noise": lambda sigma: methods.CorrectNet(base=noise(sigma)),
        "ovf": ovf,
        "irs": irs,
        "noise tuned": noise,
        "noise compute": noise,
        "ovf tuned": ovf,
        "irs tuned": irs,
        "ovf positive": lambda sigma: ovf(sigma, -1),
        "irs positive": lambda sigma: irs(sigma, -1),
    }
    found: Variants = {}
    for name in names:
        line = LINES[one_of("method", name, LINES)]
        found |= controls if line == "control" else {line: makers[line]}
    return found


def with_control(names: Sequence[str]) -> tuple[str, ...]:
    """`names`, with "control" added before the first method with feedback."""
    if "control" in names:
        return tuple(names)
    place = next((i for i, name in enumerate(names) if name.partition("-")[0] in ("ovf", "irs")), None)
    return tuple(names) if place is None else (*names[:place], "control", *names[place:])


def number_variants(panel: Panel, published: bool, control: bool = True) -> Variants:
    """OVF and IRS with N = 1 .. 5 feedbacks, and the control of each N."""
    ovf, irs = ovf_of(panel, published), beta_of("irs", panel)
    found: Variants = {f"ovf n={n}": lambda sigma, n=n: replace(ovf, sigma=sigma, feedbacks=n) for n in range(1, 6)}
    found |= {f"irs n={n}": lambda sigma, n=n: methods.IRS(sigma=sigma, beta=irs, feedbacks=n) for n in range(1, 6)}
    if control:
        found |= {
            f"control n={n}": lambda sigma, n=n: methods.ScaledLogits(sigma=sigma, feedbacks=n) for n in range(1, 6)
        }
    return found


def other_variants(panel: Panel, published: bool, control: bool = True) -> Variants:
    """Reversed decay, reversed delta, noise-free classifiers, the published code's OVF, and what they compare with."""
    ovf, irs = ovf_of(panel, published), beta_of("irs", panel)
    usual = ("ovf", "irs", "noise", "control") if control else ("ovf", "irs", "noise")
    return figure_variants(panel, usual, published) | {
        "ovf reversed decay": lambda sigma: replace(ovf, sigma=sigma, reversed_decay=True),
        "irs reversed decay": lambda sigma: methods.IRS(sigma=sigma, beta=irs, reversed_decay=True),
        "ovf reversed delta": lambda sigma: replace(ovf, sigma=sigma, delta=-0.05),
        "irs noise-free classifiers": lambda sigma: methods.IRS(sigma=sigma, beta=irs, noisy_classifiers=False),
        "ovf published": lambda sigma: replace(ovf, sigma=sigma, published_variant=True),
    }
