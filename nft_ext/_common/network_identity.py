"""The identity of a network: everything beside its weights that decides what it computes, layer by layer.

Journals and training states store it, so a file of another network is refused, and the error names the layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from nft_ext._common.differences import Difference, differences
from nft_ext._common.moved import MOVED
from nft_ext._common.value_identity import Describer, attributes

# Attributes of noisy layers that contexts and an evaluation set. Models pickled by 0.2 have `int8`.
STATE = ("noise_enabled", "scaled", "shares_codes", "int8", "injectable", "injecting", "_swapped")
DEVICE = ("nvm", "name", "stream", "_name", "_placed")  # of noisy layers


def network_identity(model: nn.Module, leave_out: Iterable[str] = ()) -> tuple[dict[str, dict[str, Any]], set[str]]:
    """The identity of a network without its parameters and persistent buffers.

    A layer counts by its class, its attributes, its non-persistent buffers and its hooks. Classes of torch and nft_ext
    count by their qualified name and public attributes. Other classes also count by their code and private attributes.

    Args:
        model: the network.
        leave_out: names of attributes of noisy layers that the caller records elsewhere.

    Returns:
        {name of a layer: {"class": ..., attribute: ...}}, JSON-able; and the types of values that nobody can compare.
    """
    describe = Describer({id(module): name for name, module in model.named_modules()})
    left_out = {*STATE, *leave_out}
    found = {}
    for name, module in model.named_modules(remove_duplicate=False):
        first = describe.names[id(module)]
        if first != name:
            found[name] = {"class": f"the layer {first!r}"}
        else:
            found[name] = {"class": describe(type(module)), **attributes(module, describe, left_out)}
    return found, describe.unread


def tied(model: nn.Module) -> list[list[str]]:
    """The groups of names that share one parameter."""
    groups: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(name)
    return [names for names in groups.values() if len(names) > 1]


def network_differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[Difference]:
    """What differs between two identities, layer by layer."""
    found = []
    for name in dict.fromkeys([*one, *other]):
        layer = f"layer {name}" if name else "the network"
        left, right = (_layer(side.get(name)) for side in (one, other))
        if left.get("class") != right.get("class"):
            found.append(Difference(layer, *_told_apart(left.get("class"), right.get("class"))))
        else:
            found += [Difference(f"{layer}: {attribute}", a, b) for attribute, a, b in differences(left, right)]
    return found


def _layer(entry: Mapping[str, Any] | None) -> dict[str, Any]:
    """An entry whose class of nft_ext has its present name.

    In a class of torch or nft_ext an option that is absent equals one that is off: a new option refuses no older file.
    """
    if entry is None:
        return {}
    kind = str(entry.get("class"))
    module, _, name = kind.rpartition(".")
    kept = {key: value for key, value in entry.items() if " " in kind or (value is not None and value is not False)}
    return kept | {"class": f"{MOVED[module]}.{name}" if module in MOVED else kind}


def _told_apart(one: str | None, other: str | None) -> tuple[str, str]:
    """Both classes, by their last names where these differ."""
    short = [None if kind is None or " " in kind else kind.rpartition(".")[2] for kind in (one, other)]
    whole = short[0] == short[1]
    left, right = (kind if whole or brief is None else brief for kind, brief in zip((one, other), short, strict=True))
    return left or "nothing", right or "nothing"
