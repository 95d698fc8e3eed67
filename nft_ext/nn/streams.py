"""Streams of noisy layers: a function of the layers' names, whatever was called before.

`nft_ext.convert` names layers for good. Other layers (built by hand, or of two models that were converted apart and
then joined) get a name from the model in which a context meets them. Another model that gives them another name is
refused: their chips would depend on which model came first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nft_ext._common.checks import fail
from nft_ext.ops.keys import settled_streams


def keepers(layers: Mapping[str, Any]) -> list[Any]:
    """The noisy layers that keep their stream: `convert` named them, and no other layer comes before them.

    Of layers with one stream the first name comes first, then the first place in the model.
    """
    kept: dict[int, Any] = {}
    for layer in layers.values():
        if layer.name is not None and layer._met_as is None:
            other = kept.get(layer.stream)
            if other is None or layer.name < other.name:
                kept[layer.stream] = layer
    return list(kept.values())


def name_layers(layers: Mapping[str, Any]) -> None:
    """Gives a name and a stream to the noisy layers that have none of their own.

    Args:
        layers: all noisy layers of a model by qualified name.

    Raises:
        ValueError: another model gave a layer another name.
    """
    kept = keepers(layers)
    if len(kept) == len(layers):
        return
    own = set(map(id, kept))
    rest = {name: layer for name, layer in layers.items() if id(layer) not in own}
    for name, layer in rest.items():
        if layer._met_as not in (None, name):
            fail(
                "model",
                f"must give its layers the names of their first use, but layer {name!r} was used before as "
                f"{layer._met_as!r} of another model. Fix the names by nft_ext.convert(model, nvm) on the whole model",
                repr(name),
            )
    for name, stream in settled_streams(rest, {layer.stream for layer in kept}).items():
        rest[name].name, rest[name].stream, rest[name]._met_as = name, stream, name


def keep_names(layers: Mapping[str, Any]) -> None:
    """Makes the present names and streams final, in a copy whose structure differs from the model's."""
    for layer in layers.values():
        for matrix in layer.matrices():
            matrix._met_as = None
