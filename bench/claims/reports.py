"""Accuracies and differences out of the JSON files of `nft-ext reproduce`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from nft_ext.metrics import Equivalence, equivalence

FOLDER = "docs/results/"
FIGURE3, PROTOCOL, ABLATIONS, SLOW, FAST = (
    f"{FOLDER}reproduce-vgg8-mnist/{name}.json"
    for name in ("figure3", "protocol", "ablations", "convergence", "lr-0.008/convergence")
)
WIDTHS = [f"{FOLDER}reproduce-vgg8-mnist-width/{width}/convergence.json" for width in ("0.125", "0.5")]
METHODS = ("noise", "control", "ovf", "irs")
NAMES = {
    "vanilla": "vanilla",
    "noise": "noise injection",
    "control": "control",
    "ovf": "OVF",
    "irs": "IRS",
}
SIGMAS = (0.2, 0.3, 0.35)
Figures = Callable[..., Sequence[float]]


def one(entries: list[dict[str, Any]], **facts: Any) -> dict[str, Any]:
    (found,) = [entry for entry in entries if all(entry[key] == value for key, value in facts.items())]
    return found


def accuracy(report: Any, variant: str, **facts: Any) -> float:
    return one(report["rows"], variant=variant, **facts)["accuracy"]


def difference(report: Any, a: str, b: str, *keys: str, **facts: Any) -> list[float]:
    found = one(report["comparisons"], a=a, b=b, **facts)
    return [found[key] for key in keys or ("mean", "ci95")]


def failing(report: Any, criterion: str, variant: str) -> int:
    return one(report["convergence"], variant=variant)[criterion]["converged"].count(False)


def against(report: Any, a: str, b: str, sigma: float) -> list[float]:
    """The paired difference and its half-width, from the accuracies of each seed where the report has no such row."""
    if any((entry["a"], entry["b"]) == (a, b) for entry in report["comparisons"]):
        return difference(report, a, b, sigma=sigma)
    found = equal_within_two_points(report, a, b, sigma).difference
    return [found.mean, found.ci95]


def equal_within_two_points(report: Any, a: str, b: str, sigma: float) -> Equivalence:
    rows = [np.array(one(report["rows"], variant=variant, sigma=sigma)["per_seed"]) for variant in (a, b)]
    return equivalence(*rows, margin=2.0, shared_seeds=True)


# Every method of the paper and the control against noise injection, then the methods against the control.
PAIRS = (("ovf", "noise"), ("irs", "noise"), ("control", "noise"), ("ovf", "control"), ("irs", "control"))


def equality(report: Any, *sigmas: float) -> list[list[float]]:
    """Adjusted p of equality of OVF and IRS with the control, per sigma; all pairs and sigmas are one family."""
    values = holm([equal_within_two_points(report, *pair, sigma).p for sigma in sigmas for pair in PAIRS])
    return [values[5 * index + 3 : 5 * index + 5] for index in range(len(sigmas))]


def control_adjusted(report: Any) -> float:
    """Adjusted p of the control against noise injection, at sigma 0.35."""
    return holm([equal_within_two_points(report, *pair, 0.35).difference.p for pair in PAIRS])[2]


def holm(values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number."""
    found, highest = [0.0] * len(values), 0.0
    for place, index in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        highest = max(highest, min(1.0, (len(values) - place) * values[index]))
        found[index] = highest
    return found
