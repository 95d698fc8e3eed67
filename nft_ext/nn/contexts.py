"""Contexts that control the noise: on or off, sigma, and chips."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from nft_ext._common.checks import boolean, fail, number
from nft_ext.nn import NoisyLayer, chip_check, recomputation
from nft_ext.nn.compiled_check import checks_by
from nft_ext.nn.conditions import hold_unquantized
from nft_ext.nn.converters import ConvertingLayer
from nft_ext.nn.entry import Entry, again
from nft_ext.nn.observed import own_forwards
from nft_ext.nn.programmed import program_layers
from nft_ext.nn.scopes import changed
from nft_ext.nn.structure import layers_of
from nft_ext.ops.functional import device_at, own_table
from nft_ext.ops.keys import noise_key
from nft_ext.ops.operands import autocast_dtype, check_key


@contextlib.contextmanager
def noise(model: nn.Module, *, enabled: bool | None = None, sigma: float | None = None) -> Iterator[nn.Module]:
    """Turns the noise of every noisy layer of `model` on or off, or changes sigma, inside the context.

    train() and eval() do not change the noise. Contexts may be left in any order.

    Args:
        model: a noisy model.
        enabled: True, False (layers use the quantized weight W_d), or None (no change).
        sigma: a new sigma in the device model's unit (nvm.relative_to), or None (no change).

    Raises:
        ValueError: no noisy layers, enabled is neither None nor a bool, or a bad sigma.
        RuntimeError: another thread is inside a context of this model. At the forward: in another thread.
    """
    if enabled is not None:
        boolean("enabled", enabled)
    if sigma is not None:
        sigma = number("sigma", sigma, 0.0)
    layers = layers_of(model)
    tables: dict[NoisyLayer, Tensor] = {}

    def change(layer: NoisyLayer) -> None:
        if enabled is not None:
            layer.set_enabled(enabled)
        if sigma is not None:
            device = device_at(layer.nvm, sigma)
            if layer not in tables:
                tables[layer] = own_table(device, layer.anchor.device)
            layer.set_device(device, tables[layer])

    with _changed(model, layers, change):
        yield model


@contextlib.contextmanager
def chips(
    model: nn.Module,
    seed: int = 0,
    draws: int | Iterable[int] = 0,
    *,
    domain: str = "evaluation",
    key: Tensor | None = None,
    repeat: bool = True,
    programmed: bool = False,
) -> Iterator[nn.Module]:
    """Runs `model` on S chips in one pass inside the context.

    The model repeats every tensor of its inputs S times along dim 0, also in containers. So model(x [B, ...]) returns
    [S * B, ...], chip-major: y.unflatten(0, (S, B)). In nested contexts of one model the innermost decides. Contexts
    may be left in any order.

    For S > 1 a check compares two chips in one pass with one pass per chip, once per model and kind of input. A model
    that mixes chips, as a sequence-first one does, runs one chip per pass, and a UserWarning says why. The result is
    the same: the chips' results one after another along dim 0. A floating-point result without dimensions, such as a
    loss, is the mean over the chips. A compiled graph cannot run the chips one by one: there, such a model is refused.
    Compiled models with inputs in containers, or with numbers, are not checked.

    Args:
        model: a noisy model.
        seed, draws, domain: the chips, see `noise_key`.
        key: int64 [S, 2], in place of seed, draws and domain.
        repeat: False if each chip has its own input: every tensor is then [S * B, ...], chip-major.
        programmed: program all layers once, at the entry, and keep W_p [S, *weight.shape]. Forwards without gradients
            then compute library products, on the same chips bit for bit. This pays for several batches with many rows
            per chip, and takes S times the memory of the weights. Later changes of the weights have no effect inside.
            Forwards with gradients, and a `noise` context inside, program as usual. W_p is kept in autocast's dtype;
            forwards in another type program as usual. For fused layers with ReLU in 16 bits on CUDA, the product of
            W_p and BatchNorm's scale is kept, rounded once.

    Raises:
        ValueError: no noisy layers, or draws out of range. At the forward: BatchNorm with batch statistics and S > 1,
            which would mix chips, an input whose length is no multiple of S with repeat=False, results that cannot be
            joined, or a part with several chips inside a model with several.
        RuntimeError: another thread is inside a context of this model. At the forward: in another thread, or with S > 1
            past the model (`model.encode(x)`), whose rows would be split among the chips.
    """
    boolean("repeat", repeat)
    boolean("programmed", programmed)
    layers = layers_of(model)
    home = _home(layers)
    if key is None:
        key = noise_key(seed, draws, domain=domain, device=home)
    elif seed != 0 or draws != 0:
        fail("key", "must be given without seed and draws, which it replaces", f"seed {seed}, draws {draws}")
    else:  # a key on the meta device serves a model that gives shapes only
        shapes = isinstance(key, Tensor) and key.is_meta and all(layer.here.type == "meta" for layer in layers)
        check_key(key, key.device if shapes else home)
    with _on_chips(model, layers, key, repeat):
        hold(layers if programmed else [layer for layer in layers if layer.unquantized])
        yield model


def _home(layers: list[NoisyLayer]) -> torch.device:
    """The torch device of the first weight with values; the CPU without any, as under offloading."""
    return next((layer.here for layer in layers if layer.here.type != "meta"), torch.device("cpu"))


@contextlib.contextmanager
def _on_chips(
    model: nn.Module, layers: list[NoisyLayer], key: Tensor, repeat: bool, quiet: bool = False
) -> Iterator[Entry | None]:
    home, keys = key.device, {}
    entry = None
    if key.shape[0] > 1:
        outer = {before for layer in layers for before in (layer._entry, *(a.before[1] for a in layer._changes))}
        entry = Entry(key.shape[0], repeat, [e for e in outer if e is not None], quiet, threading.get_ident())

    def change(layer: NoisyLayer) -> None:
        here, own = layer.here, key
        if here != home and here.type != "meta":  # weights that arrive from there later bring their own device
            own = keys[here] = keys[here] if here in keys else key.to(here)
        layer.set_key(own)
        layer.__dict__["_entry"] = entry

    with _changed(model, layers, change), contextlib.nullcontext() if entry is None else entry.at(model):
        yield entry


@contextlib.contextmanager
def _changed(model: nn.Module, layers: list[NoisyLayer], change: Callable[[NoisyLayer], None]) -> Iterator[None]:
    with changed(model, layers, change), own_forwards(layers):
        yield


def why_apart(model: nn.Module, *args: Any, **kwargs: Any) -> str | None:
    """The reason why chips must not share a pass of this model, or None if they may. Checks these inputs anew.

    Later `chips` contexts know the outcome.
    """
    chip_check.forget(model)
    return _reason(model, *args, **kwargs)


@checks_by
def _reason(model: nn.Module, *args: Any, **kwargs: Any) -> str | None:
    layers = layers_of(model)
    key = noise_key(0, range(2), device=_home(layers))
    with _on_chips(model, layers, key, repeat=True, quiet=True) as entry:
        model(*args, **kwargs)
        return None if entry is None else entry.reason


def checkpoint_contexts(
    model: nn.Module,
) -> Callable[[], tuple[contextlib.AbstractContextManager, contextlib.AbstractContextManager]]:
    """The `context_fn` of torch.utils.checkpoint for forwards inside `noise` or `chips`.

    The backward then recomputes with the noise of the forward, even outside the context. Noisy layers do the same
    without it, so only programs written for version 0.2 need it.

    Args:
        model: the noisy model.

    Returns:
        A function for the argument `context_fn`.
    """

    def context_fn():
        layers = layers_of(model)
        states = [(layer.noise_state(), layer._entry) for layer in layers]
        came_in = next((e for _, e in states if e is not None and e.is_on(model)), None)

        @contextlib.contextmanager
        def replay():
            # Not `changed`: autograd may run this in another thread, inside the forward's context.
            entered = contextlib.nullcontext()
            if came_in is not None:
                inside = [layer for layer, (_, past) in zip(layers, states) if past is came_in]
                entered = again(model, inside, came_in.count, came_in.repeat)
            with recomputation.with_states({layer: state for layer, (state, _) in zip(layers, states)}), entered:
                yield

        return contextlib.nullcontext(), replay()

    return context_fn


def hold(layers: Iterable[NoisyLayer]) -> None:
    """Programs all layers for the present chips, in few launches. They use these weights until the context ends."""
    layers = [layer for layer in layers if layer.here.type != "meta"]  # others have no values before their forwards
    hold_unquantized([layer for layer in layers if layer.unquantized])
    layers = [layer for layer in layers if not layer.unquantized]
    for layer in layers:
        if isinstance(layer, ConvertingLayer) and layer.holds_steps:
            layer.hold_in_steps()
    layers = [layer for layer in layers if not (isinstance(layer, ConvertingLayer) and layer.holds_steps)]
    if not layers:
        return
    dtype = autocast_dtype(layers[0].here) or torch.float32
    scales = {layer: layer.row_scale(dtype) for layer in layers if layer.one_operator}
    others = [layer for layer in layers if not layer.one_operator]  # their own forwards cast the weights
    for layer, weights in zip(others, program_layers(others, torch.float32), strict=True):
        layer.hold_programmed(weights)
    for scaled in (False, True):
        held = [layer for layer, scale in scales.items() if (scale is not None) == scaled]
        factors = [scale for scale in scales.values() if scale is not None] if scaled else []
        for layer, weights in zip(held, program_layers(held, dtype, factors), strict=True):
            layer.hold_programmed(weights, scaled)


@contextlib.contextmanager
def shared_codes(model: nn.Module) -> Iterator[None]:
    """Each forward inside quantizes its CUDA weights once, and its backward uses the same codes.

    Otherwise a backward quantizes again. Forwards do not share codes: a write to `weight.data` between two forwards
    cannot be noticed. The gradient is that of the forward, whatever is written before the backward. On the CPU nothing
    changes.

    Raises:
        ValueError: no noisy layers.
        RuntimeError: another thread is inside a context of this model.
    """
    with changed(model, layers_of(model), lambda layer: layer.share_codes(layer.anchor.is_cuda)):
        yield
