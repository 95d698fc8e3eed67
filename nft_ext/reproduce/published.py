"""The published numbers (arXiv 2305.14561), looked up by panel, variant and sigma."""

from __future__ import annotations

import functools
import json
import re
from importlib import resources
from typing import Any

REFERENCE = "Qin et al., Negative Feedback Training, arXiv 2305.14561"
PRETRAINED = re.compile(r"(ovf|irs) pretrained, (\d+)/200 epochs")
NUMBERED = re.compile(r"(ovf|irs) n=(\d+)")


@functools.lru_cache(maxsize=1)
def facts() -> dict[str, Any]:
    """The content of published.json: figures read from the paper's vector graphics, tables from its text."""
    return json.loads(resources.files("nft_ext.reproduce").joinpath("published.json").read_text(encoding="utf-8"))


def _at(values: list[float | None], sigma: float | None) -> float | None:
    if sigma is None:
        return None
    return next((value for at, value in zip(facts()["sigma_d"], values) if abs(at - sigma) < 1e-9), None)


def accuracy(panel: str, variant: str, sigma: float | None) -> float | None:
    """Published mean accuracy in percent, None if the paper has none.

    Variants of the ablations have the value of `ablation`, on the ablations' panel and sigma. "ovf published" is
    compared with the paper's OVF, because the published code trained the paper's ResNet-18.
    """
    line = facts()["accuracy_percent"].get(panel, {}).get("ovf" if variant == "ovf published" else variant)
    if line is not None:
        return _at(line, sigma)
    where = facts()["ablations"]
    if panel == where["model"] and sigma is not None and abs(sigma - where["sigma_d"]) < 1e-9:
        return ablation(variant)
    return None


def ablation(variant: str) -> float | None:
    """Published accuracy in percent of an ablation, on the ablations' panel and sigma, or None."""
    found = facts()["ablations"]
    if match := NUMBERED.fullmatch(variant):
        return found["number_of_feedbacks"][match[1]].get(match[2])
    if match := PRETRAINED.fullmatch(variant):
        start = found["pretrained"]
        return next((a for e, a in zip(start["epochs"], start[match[1]]) if e == int(match[2])), None)
    full = found["number_of_feedbacks"]["ovf"]["3"]
    return {
        "ovf reversed decay": found["reversed_decay"]["ovf"],
        "irs reversed decay": found["reversed_decay"]["irs"],
        "irs noise-free classifiers": found["noise_free_classifiers"]["irs"],
        "ovf reversed delta": round(full - found["reversed_delta_sigma"]["ovf_drop_points"], 2),
    }.get(variant)


def ekl(variant: str, sigma: float | None) -> float | None:
    """Published EKL in nat. The paper does not name its model and data set."""
    line = facts()["ekl"].get(variant)
    value = _at(line, sigma) if isinstance(line, list) else None
    return None if value is None else value / 100


def convergence(variant: str, panel: str, sigma: float | None) -> tuple[int, int] | None:
    """(non-converging trainings, trainings) by the paper's criterion, None if the paper has none."""
    found = facts()["convergence"]
    if panel != found["model"] or sigma is None or abs(sigma - found["sigma_d"]) > 1e-9:
        return None
    count = found["non_converging"].get(variant)
    return None if count is None else (count, found["runs"])


def flaws() -> tuple[str, ...]:
    """Known flaws of the published results."""
    return tuple(facts()["known_flaws_of_the_published_results"])
