"""How the cells at hand were trained and measured, and where that is not what the paper did."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nft_ext._common.checks import fail
from nft_ext.reproduce import published
from nft_ext.training import Recipe

RUNS = 200  # the paper's, of a Monte Carlo evaluation


def conditions(cells: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Settings of the cells in words, name -> value or values."""
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
        "runs",
        "device",
    )
    found = {name: values(cells, name) for name in names}
    return {name.replace("_", " "): _words(seen) for name, seen in found.items() if seen}


def values(cells: Sequence[dict[str, Any]], name: str) -> list[Any]:
    """The distinct values of a setting, in the order met."""
    return list(dict.fromkeys(cell["config"][name] for cell in cells if name in cell["config"]))


def _words(seen: list[Any]) -> str:
    return ", ".join(
        "all" if value is None else f"{value:g}" if isinstance(value, float) else str(value) for value in seen
    )


def machines(cells: Sequence[dict[str, Any]]) -> list[str]:
    """Versions and machine the cells were computed with, a line each distinct set."""
    return list(
        dict.fromkeys(
            ", ".join(f"{name} {value}" for name, value in cell.get("versions", {}).items()) for cell in cells
        )
    )


def differences(cells: Sequence[dict[str, Any]]) -> list[str]:
    """What of the cells' settings is not the paper's protocol, a sentence each; the last four always hold."""
    found = []
    for panel in dict.fromkeys(cell["config"]["panel"] for cell in cells):
        here = [cell for cell in cells if cell["config"]["panel"] == panel]
        if unlike := _of_panel(panel, here):
            found.append(f"{panel}: {', '.join(unlike)}")
    if runs := [n for n in values(cells, "runs") if n != RUNS]:
        found.append(f"{_words(runs)} chips a point (the paper {RUNS})")
    return found + [
        "an interval over training seeds, and one over chips; the paper's +-0.01 is over chips alone",
        "the best epoch is chosen on a validation split of the training images, on chips of its own"
        f"{_otherwise_selected(cells)}; the published code chooses on the test set",
        "the weights are quantized to their codes; the published code does not quantize them",
        'OVF\'s larger sigma reaches every layer (but for the line "ovf published")',
    ]


def _otherwise_selected(cells: Sequence[dict[str, Any]]) -> str:
    """The lines of the protocol study that are about this, by the name of their setting."""
    others = dict.fromkeys(
        cell["config"]["variant"].partition(" ")[2]
        for cell in cells
        if cell["config"].get("selection", "validation") != "validation"
    )
    return f" (but for {' and '.join(map(repr, others))})" if others else ""


def _of_panel(panel: str, cells: Sequence[dict[str, Any]]) -> list[str]:
    model, _, dataset = panel.partition("-")
    found = []
    if panel not in published.facts()["accuracy_percent"]:
        found.append("the paper has no such panel")
    try:
        paper = dict(vars(Recipe.paper(model, dataset)))
    except ValueError:
        paper = {}
    paper.pop("channels_last", None)  # a layout in memory is no protocol
    for name, usual in {"width": 1.0, **paper}.items():
        seen = values(cells, name)
        if name == "epochs":  # pretrained variants are trained longer or shorter on purpose
            seen = list(dict.fromkeys(c["config"]["epochs"] for c in cells if not c["config"].get("pretrained")))
        if other := [value for value in seen if value != usual]:
            found.append(f"{name.replace('_', ' ')} {_words(other)} (the paper {_words([usual])})")
    for name, what in (("train_images", "training images"), ("test_images", "test images")):
        if some := [value for value in values(cells, name) if value is not None]:
            found.append(f"{_words(some)} {what} (the paper all)")
    return found


def seconds(cells: Sequence[dict[str, Any]]) -> float:
    """Time the cells took, added up."""
    return sum(cell.get("seconds", 0.0) for cell in {cell["key"]: cell for cell in cells}.values())


def networks(cells: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Key of each network -> the epoch that was kept, its training loss, and the version that trained it.

    With these a report can stand alone where the cells are not kept.
    """
    found = {}
    for cell in cells:
        best = cell.get("training", {}).get("best") or {}
        found[cell["key"]] = {
            "epoch": best.get("epoch"),
            "train_loss": best.get("train_loss"),
            "nft_ext": cell.get("versions", {}).get("nft_ext"),
        }
    return dict(sorted(found.items()))


def check_cells(cells: Any) -> None:
    """Raises ValueError if there is no cell, or one without what a report needs; the message names it."""
    if not cells:
        fail("cells", "must hold at least one finished cell", "none")
    for cell in cells:
        missing = [name for name in ("key", "config", "points", "clean") if name not in cell]
        missing += [
            f"config.{name}" for name in ("panel", "variant", "sigma", "seed") if name not in cell.get("config", {})
        ]
        if missing:
            fail("cells", f"must each have {', '.join(missing)}", str(cell.get("key", "a cell without a key")))
