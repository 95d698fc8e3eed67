"""Contexts as a stack of changes per layer: leaving one takes its own change back and keeps the others.

So contexts may be left in any order, also those of a model and of a part of it. Leaving the innermost restores the
state before it. Leaving another one restores the state before that one and repeats the later changes.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from nft_ext._common.checks import fail
from nft_ext.nn.base import ANYWHERE, NoisyLayer

Change = Callable[[NoisyLayer], None]

_lock = threading.RLock()


class _Applied:
    """One change in the stack of one layer."""

    def __init__(self, change: Change, before: tuple) -> None:
        self.change, self.before = change, before


@contextlib.contextmanager
def changed(model: Any, layers: list[NoisyLayer], change: Change) -> Iterator[None]:
    """Context in which `change` was applied to all layers. It may be applied again when another context is left.

    Raises:
        RuntimeError: another thread is inside a context of one of the layers.
    """
    applied: dict[NoisyLayer, _Applied] = {}
    me = threading.get_ident()
    with _lock:
        if any(layer._owner not in (None, ANYWHERE, me) for layer in layers):
            fail(
                "model",
                "must not be in noise contexts of two threads at once; use a copy per thread",
                type(model).__name__,
                RuntimeError,
            )
        for layer in layers:
            layer.__dict__["_owner"] = me  # before the change, so that no other thread computes with it
            applied[layer] = _Applied(change, _state(layer))
            layer._changes.append(applied[layer])
    try:
        for layer in layers:
            change(layer)
        yield
    finally:
        with _lock:
            for layer, own in applied.items():
                _take_back(layer, own)


def _take_back(layer: NoisyLayer, own: _Applied) -> None:
    if own not in layer._changes:  # the layer was attached to another device model meanwhile
        return
    place = layer._changes.index(own)
    _restore(layer, own.before)
    for later in layer._changes[place + 1 :]:
        later.before = _state(layer)
        later.change(layer)
    del layer._changes[place]
    layer.follow_weight()
    if not layer._changes:
        layer.__dict__["_owner"] = None if layer._entry is None else ANYWHERE


def _state(layer: NoisyLayer) -> tuple:
    return layer.noise_state(), layer._entry, layer.shares_codes


def _restore(layer: NoisyLayer, state: tuple) -> None:
    noise, layer.__dict__["_entry"], shares = state
    layer.set_noise_state(noise)
    if layer.shares_codes != shares:
        layer.share_codes(shares)
