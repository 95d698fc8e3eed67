"""The two settings of every experiment: as published, and ours. The published code is NeFT_CIM (formerly NF_Training).

Facts from https://github.com/YifanQin-ND/NeFT_CIM: models/, load_dataset/, src/, config.py and the two main programs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from nft_ext._common.checks import one_of
from nft_ext.reproduce.panels import Scale

SETTINGS = ("published", "ours")
PUBLISHED = {
    "init": "published",
    "normalisation": "published",
    "selection": "published",
    "validation": 0.0,
    "schedule": "cosine-epochs",
    "published_ovf": True,
}


def in_setting(scale: Scale, setting: str) -> Scale:
    """`scale` in the published setting, or unchanged in ours.

    Raises:
        ValueError: the setting is unknown.
    """
    return scale.replace(**PUBLISHED) if one_of("setting", setting, SETTINGS) == "published" else scale


def unlike_published(cells: Sequence[dict[str, Any]]) -> list[str]:
    """How the cells' setting differs from the published code, one sentence each."""
    every = [cell["config"] for cell in cells]
    ovf = [config for config in every if config.get("method", {}).get("name") == "ovf"]
    sentences = [
        (
            "weights start as torch's constructors draw them{}; the published code draws them from N(0, 2 / fan_out) "
            "and sets biases to 0",
            every,
            lambda config: config.get("init") != "published",
        ),
        (
            "images are normalised by the training images' mean and std{}; the published code uses 0.5 on MNIST",
            every,
            lambda config: config.get("normalisation") != "published",
        ),
        (
            "the best epoch is chosen on a validation split of the training images, on separate chips{}; the published "
            "code chooses it on the test set, with a new chip per 128 images",
            every,
            lambda config: config.get("selection", "validation") == "validation",
        ),
        (
            "a share of the training images is kept for validation{}; in the published code all of them train",
            every,
            lambda config: config.get("validation", 0.1) > 0,
        ),
        (
            "the cosine lowers the learning rate with every step{}; in the published code with every epoch",
            every,
            lambda config: config.get("schedule", "cosine") == "cosine",
        ),
        (
            "OVF's feedback forwards do not move BatchNorm's running statistics{}; in the published code they do",
            ovf,
            lambda config: not config["method"].get("feedback_updates_statistics"),
        ),
        (
            "OVF's larger sigma reaches every layer{}; in the published ResNet-18 it skips the residual blocks",
            [config for config in ovf if config.get("model") == "resnet18"],
            lambda config: not config["method"].get("published_variant"),
        ),
    ]
    return [text.format(_limits(configs, unlike)) for text, configs, unlike in sentences if any(map(unlike, configs))]


def _limits(configs: Sequence[dict[str, Any]], unlike: Callable[[dict[str, Any]], bool]) -> str:
    """Names the lines of the protocol study that alone are `unlike` the published code, or that alone are like it."""
    own, others = (
        dict.fromkeys(config["variant"].partition(" ")[2] for config in configs if unlike(config) is side)
        for side in (True, False)
    )
    if not others:
        return ""
    return f" (except for {_quoted(others)})" if "" in own else f" (only in {_quoted(own)})"


def _quoted(names: Iterable[str]) -> str:
    return " and ".join(map(repr, names))
