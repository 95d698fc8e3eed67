"""How the cells were trained and measured, and how this differs from the paper."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nft_ext._common.checks import fail
from nft_ext.reproduce import published
from nft_ext.reproduce.as_published import unlike_published
from nft_ext.reproduce.variants import EPOCHS
from nft_ext.training import Recipe

RUNS = 200  # the paper's number of chips


def conditions(cells: Sequence[dict[str, Any]]) -> dict[str, str]:
    """The settings of the cells: name -> value or values in words."""
    names = (
        "model",
        "dataset",
        "width",
        "epochs",
        "batch_size",
        "optimizer",
        "lr",
        "schedule",
        "weight_decay",
        "precision",
        "channels_last",
        "train_images",
        "test_images",
        "validation",
        "validation_chips",
        "selection",
        "init",
        "normalisation",
        "runs",
        "device",
    )
    found = {name: values(cells, name) for name in names}
    return {name.replace("_", " "): _words(seen) for name, seen in found.items() if seen}


def values(cells: Sequence[dict[str, Any]], name: str) -> list[Any]:
    """The different values of a setting, in order of appearance."""
    return list(dict.fromkeys(cell["config"][name] for cell in cells if name in cell["config"]))


def _words(seen: list[Any]) -> str:
    return ", ".join(
        "all" if value is None else f"{value:g}" if isinstance(value, float) else str(value) for value in seen
    )


def machines(cells: Sequence[dict[str, Any]]) -> list[str]:
    """Versions and machine of the cells, one line per different set."""
    return list(
        dict.fromkeys(
            ", ".join(f"{name} {value}" for name, value in cell.get("versions", {}).items()) for cell in cells
        )
    )


def differences(cells: Sequence[dict[str, Any]]) -> list[str]:
    """How the cells' settings differ from the paper's protocol, one sentence each. The last two always hold."""
    found = []
    for panel in dict.fromkeys(cell["config"]["panel"] for cell in cells):
        here = [cell for cell in cells if cell["config"]["panel"] == panel]
        if unlike := _of_panel(panel, here):
            found.append(f"{panel}: {', '.join(unlike)}")
    if runs := [n for n in values(cells, "runs") if n != RUNS]:
        found.append(f"{_words(runs)} chips per network and sigma (the paper {RUNS})")
    return [
        *found,
        *unlike_published(cells),
        "we quantize the weights to their codes; the published code does not",
        "we give an interval over training seeds and one over chips; the paper's +-0.01 is over chips only",
    ]


def _of_panel(panel: str, cells: Sequence[dict[str, Any]]) -> list[str]:
    model, _, dataset = panel.partition("-")
    found = []
    if panel not in published.facts()["accuracy_percent"]:
        found.append("the paper has no such panel")
    try:
        paper = dict(vars(Recipe.paper(model, dataset)))
    except ValueError:
        paper = {}
    # The memory format is not part of a protocol, and `unlike_published` names the schedule.
    paper = {name: value for name, value in paper.items() if name not in ("channels_last", "schedule")}
    for name, usual in {"width": 1.0, **paper}.items():
        seen = values(cells, name)
        if name == "epochs":  # other epochs on purpose
            usual_lines = [c["config"] for c in cells if not c["config"].get("pretrained")]
            seen = list(dict.fromkeys(c["epochs"] for c in usual_lines if c["variant"] not in EPOCHS))
        if other := [value for value in seen if value != usual]:
            found.append(f"{name.replace('_', ' ')} {_words(other)} (the paper {_words([usual])})")
    for name, what in (("train_images", "training images"), ("test_images", "test images")):
        if some := [value for value in values(cells, name) if value is not None]:
            found.append(f"{_words(some)} {what} (the paper all)")
    return found


def seconds(cells: Sequence[dict[str, Any]]) -> float:
    """The total time of the cells."""
    return sum(cell.get("seconds", 0.0) for cell in {cell["key"]: cell for cell in cells}.values())


def networks(cells: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Key of each network -> the kept epoch, its training loss, and the version that trained it.

    These make the report usable without the cells.
    """
    found = {}
    for cell in cells:
        best = cell.get("training", {}).get("best") or {}
        found[cell["key"]] = {
            "epoch": best.get("epoch"),
            "train_loss": best.get("train_loss"),
            "nft_ext": cell.get("versions", {}).get("nft_ext"),
            **({"tuned": cell["tuned"]} if "tuned" in cell else {}),
        }
    return dict(sorted(found.items()))


def check_cells(cells: Any) -> None:
    """Checks that there are cells, with everything that a report needs.

    Raises:
        ValueError: there is no cell, or one lacks an entry. The message names both.
    """
    if not cells:
        fail("cells", "must hold at least one finished cell", "none")
    for cell in cells:
        missing = [name for name in ("key", "config", "points", "clean") if name not in cell]
        missing += [
            f"config.{name}" for name in ("panel", "variant", "sigma", "seed") if name not in cell.get("config", {})
        ]
        if missing:
            fail("cells", f"must each have {', '.join(missing)}", str(cell.get("key", "a cell without a key")))
