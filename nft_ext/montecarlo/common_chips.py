"""Whether the curves of a sweep share their chips, layer by layer."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from nft_ext.nn import noisy_layers

_SHOWN = 4  # layers that a text names


def chips_apart(models: dict[str, nn.Module]) -> list[str]:
    """Says which networks do not share the chips of all layers, one text per other set of chips.

    Two networks share a layer's chips if each has a layer with that stream.

    Args:
        models: curve name -> converted network.

    Returns:
        Texts that compare with the first network; none if all chips are common.
    """
    groups: dict[frozenset[int], list[str]] = {}
    names: dict[frozenset[int], dict[int, str]] = {}
    for curve, model in models.items():
        layers = noisy_layers(model).items()
        streams = {m.stream: part for name, layer in layers for part, m in layer.matrices_by_name(name).items()}
        groups.setdefault(frozenset(streams), []).append(curve)
        names[frozenset(streams)] = streams
    first, *others = groups
    return [_text(groups[first], groups[other], names[first], names[other]) for other in others]


def _text(first: list[str], second: list[str], a: dict[int, str], b: dict[int, str]) -> str:
    only_a, only_b = {a[s] for s in a.keys() - b.keys()}, {b[s] for s in b.keys() - a.keys()}
    parts = [
        ("another stream", sorted(only_a & only_b)),
        (f"only in {first[0]}", sorted(only_a - only_b)),
        (f"only in {second[0]}", sorted(only_b - only_a)),
    ]
    details = "; ".join(f"{what}: {_listed(layers)}" for what, layers in parts if layers)
    return (
        f"{_listed(second)} shares the chips of {len(a.keys() & b.keys())} of {max(len(a), len(b))} layers with "
        f"{_listed(first)}; the other layers have chips of their own, so differences have more noise ({details})"
    )


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
