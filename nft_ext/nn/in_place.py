"""Conversion in place: the model itself changes, or, after an error, nothing of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import cast

from torch import nn

from nft_ext._common.checks import fail
from nft_ext.nn.base import NoisyLayer


def check_outside(layers: Iterable[nn.Module], task: str) -> None:
    """Refuses noisy layers inside a noise context, which would lose its chips.

    Raises:
        RuntimeError: a layer is inside one.
    """
    for layer in layers:
        if isinstance(layer, NoisyLayer) and (layer._changes or layer._entry is not None):
            rule = f"must be False inside nft_ext.noise and nft_ext.chips: leave the context, then {task}"
            fail("inplace", rule, f"a context of {layer.name!r}", RuntimeError)


@contextlib.contextmanager
def unchanged_on_error(model: nn.Module) -> Iterator[None]:
    """Context in which classes and attributes of modules change. An error undoes all of it."""
    before = [(m, type(m), dict(m.__dict__)) for m in model.modules()]
    try:
        yield
    except BaseException:
        for m, kind, own in before:
            if type(m) is not kind:
                cast("nn.Module", m).__class__ = kind
            m.__dict__.clear()
            m.__dict__.update(own)
        raise
