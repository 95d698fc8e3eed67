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

    __slots__ = ("before", "change")

    def __init__(self, change: Change, before: tuple) -> None:
        self.change, self.before = change, before


@contextlib.contextmanager
def changed(model: Any, layers: list[NoisyLayer], change: Change) -> Iterator[None]:
    """Context in which `change` was applied to all layers. It may be applied again when another context is left.

    Raises:
        RuntimeError: another thread is inside a context of one of the layers.
    """
    applied: list[tuple[NoisyLayer, _Applied]] = []
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
            own = layer.__dict__
            own["_owner"] = me  # before the change, so that no other thread computes with it
            here = _Applied(change, _state(layer))
            own["_changes"].append(here)
            applied.append((layer, here))
    try:
        for layer in layers:
            change(layer)
        yield
    finally:
        with _lock:
            for layer, here in applied:
                _take_back(layer, here)


def _take_back(layer: NoisyLayer, own: _Applied) -> None:
    changes = layer._changes
    if changes and changes[-1] is own:  # the usual case
        changes.pop()
        _restore(layer, own.before)
    elif own in changes:
        place = changes.index(own)
        _restore(layer, own.before)
        for later in changes[place + 1 :]:
            later.before = _state(layer)
            later.change(layer)
        del changes[place]
    else:  # the layer was attached to another device model meanwhile
        return
    if not changes:
        layer.__dict__["_owner"] = None if layer._entry is None else ANYWHERE


def _state(layer: NoisyLayer) -> tuple:
    own = layer.__dict__
    return layer.noise_state(), own["_entry"], own.get("shares_codes", False)


def _restore(layer: NoisyLayer, state: tuple) -> None:
    own = layer.__dict__
    noise, own["_entry"], shares = state
    layer.set_noise_state(noise)
    if own.get("shares_codes", False) != shares:
        layer.share_codes(shares)
