"""Recomputed regions run on the chips of their first forward: activation checkpointing inside noise contexts.

A checkpointed region runs again in the backward, when the contexts `chips` and `noise` may have ended. So the first
forward notes the state of its noisy layers at the region, and the recomputation sets it again. This needs no help of
the user: it finds torch.utils.checkpoint's regions of both kinds, and those of libraries built alike (an autograd
Function whose `ctx.run_function` is run again).

Noise that no context set needs no note: its key comes from torch's generator, which checkpointing restores.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import torch

from nft_ext._common.checks import fail
from nft_ext.ops.same_noise import OTHER_NOISE


class Layer(Protocol):
    """What a noisy layer offers here."""

    name: str | None

    def noise_state(self) -> tuple: ...
    def set_noise_state(self, state: tuple) -> None: ...


_top_hooks: Callable = torch._C._autograd._top_saved_tensors_default_hooks  # pyright: ignore[reportAttributeAccessIssue]
_backward, _gradients_on = torch._C._current_graph_task_id, torch.is_grad_enabled
_Region = tuple[Any, str]  # who runs a function again, and the name of that function there
_NOTES = "_noise_notes"  # the attribute of a function that is run again
_local = threading.local()


def note_forward(layer: Layer, look: bool) -> None:
    """Notes the layer's state if this eager forward is part of regions that the backward will run again.

    Args:
        layer: about to compute.
        look: whether regions that run without gradients are looked for: in training mode, and in a noise context.
            Elsewhere they need no note, because torch's generator decides the chip.
    """
    for region in _regions(look):
        table, key, _, *rest = layer.noise_state()
        _notes_of(region).states.setdefault(layer, (table, key, None, *rest))  # programmed weights take memory


def note_entry(context: Callable[[], contextlib.AbstractContextManager], look: bool) -> None:
    """Notes a context that the recomputation needs around it, if this forward is part of such regions."""
    for region in _regions(look):
        _notes_of(region).contexts.append(context)


@contextlib.contextmanager
def repeated(context: Callable[[], contextlib.AbstractContextManager]) -> Iterator[None]:
    """Regions with noisy layers that run inside get `context` around their recomputation."""
    active = _local.__dict__.setdefault("active", [])
    active.append(context)
    try:
        yield
    finally:
        active.remove(context)


def may_matter(look: bool) -> bool:
    """Whether this forward may be part of a region, or run again by a backward. A quick look, in every forward."""
    if _gradients_on():
        return _top_hooks(True) is not None or _backward() != -1
    return look


def is_unknown() -> bool:
    """Whether a backward runs this forward again, and no state was noted for it."""
    return _backward() != -1 and _gradients_on() and not getattr(_local, "depth", 0)


def is_followed() -> bool:
    """Whether the present backward runs a region of a kind whose forward is noted inside every noise context."""
    return callable(getattr(torch._C._current_autograd_node(), "run_function", None))


@contextlib.contextmanager
def with_states(states: Mapping[Any, tuple]) -> Iterator[None]:
    """Inside, the layers have these states. The exit restores their own."""
    before = {layer: layer.noise_state() for layer in states}
    _local.depth = getattr(_local, "depth", 0) + 1
    try:
        for layer, state in states.items():
            layer.set_noise_state(state)
        yield
    finally:
        _local.depth -= 1
        for layer, state in before.items():
            layer.set_noise_state(state)


def refuse_unknown(layer: Layer) -> None:
    """Raises: the layer would be recomputed outside of the context of its forward.

    Raises:
        RuntimeError: always.
    """
    fail(layer.name or type(layer).__name__, *OTHER_NOISE, RuntimeError)


class _Notes:
    """What the recomputation of one region needs."""

    def __init__(self) -> None:
        self.states: dict[Layer, tuple] = {}
        self.contexts: list[Callable[[], contextlib.AbstractContextManager]] = list(getattr(_local, "active", ()))


def _notes_of(region: _Region) -> _Notes:
    """The notes of a region. The first time, the function that it runs again is made to use them."""
    owner, name = region
    function = getattr(owner, name)
    notes: _Notes | None = getattr(function, _NOTES, None)
    if notes is None:
        notes = _Notes()
        setattr(owner, name, _replayed(function, notes))
    return notes


def _replayed(function: Callable, notes: _Notes) -> Callable:
    @functools.wraps(function)
    def run(*arguments, **options):
        with contextlib.ExitStack() as stack:
            stack.enter_context(with_states(notes.states))
            for context in notes.contexts:
                stack.enter_context(context())
            return function(*arguments, **options)

    run.__dict__[_NOTES] = notes
    return run


def _regions(look: bool) -> list[_Region]:
    """The regions that now run for the first time, innermost first. Without any, a look at two flags suffices."""
    if _gradients_on():
        if _top_hooks(True) is None:
            return []
    elif not look or torch.is_inference_mode_enabled():
        return []
    found: list[_Region] = []
    frame = sys._getframe(2)
    while frame is not None:
        code = frame.f_code
        if code.co_name == "forward" and "ctx" in code.co_varnames:
            ctx = frame.f_locals.get("ctx")
            if callable(getattr(ctx, "run_function", None)):
                found.append((ctx, "run_function"))
        elif code.co_name == "checkpoint" and "gen" in code.co_varnames:
            generator = frame.f_locals.get("gen")  # of torch.utils.checkpoint, waiting for the forward's end
            waiting = getattr(generator, "gi_frame", None)
            region = None if waiting is None else waiting.f_locals.get("new_frame")
            if callable(getattr(region, "recompute_fn", None)):
                found.append((region, "recompute_fn"))
        frame = frame.f_back
    return found
