"""Contexts that control the noise: on or off, sigma, and chips."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nft_ext._common.checks import boolean, fail, number
from nft_ext.nn import NoisyLayer, check_noisy, noisy_layers, recomputation
from nft_ext.nn.observed import own_forwards
from nft_ext.nn.programmed import program_layers
from nft_ext.ops.functional import device_at
from nft_ext.ops.keys import noise_key
from nft_ext.ops.operands import autocast_dtype, check_key

_owners: weakref.WeakKeyDictionary[nn.Module, tuple[int, int]] = weakref.WeakKeyDictionary()
_lock = threading.Lock()
_OWN_INPUTS = "_chips_have_own_inputs"  # set inside `chips`; an attribute, because compiled graphs guard on it


@contextlib.contextmanager
def noise(model: nn.Module, *, enabled: bool | None = None, sigma: float | None = None) -> Iterator[nn.Module]:
    """Turns the noise of every noisy layer of `model` on or off, or changes sigma, inside the context.

    train() and eval() do not change the noise.

    Args:
        model: a noisy model.
        enabled: True, False (layers use the quantized weight W_d), or None (no change).
        sigma: a new sigma in the device model's unit (nvm.relative_to), or None (no change).

    Raises:
        ValueError: no noisy layers, enabled is neither None nor a bool, or a bad sigma.
        RuntimeError: another thread is inside a context of this model.
    """
    if enabled is not None:
        boolean("enabled", enabled)
    if sigma is not None:
        sigma = number("sigma", sigma, 0.0)
    with _swapped(model) as layers:
        for layer in layers.values():
            if enabled is not None:
                layer.set_enabled(enabled)
            if sigma is not None:
                layer.set_device(device_at(layer.nvm, sigma))
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

    The model repeats every tensor argument S times along dim 0. So model(x [B, ...]) returns [S * B, ...], chip-major:
    y.unflatten(0, (S, B)). In nested contexts of one model the innermost decides.

    Args:
        model: a noisy model.
        seed, draws, domain: the chips, see `noise_key`.
        key: int64 [S, 2], in place of seed, draws and domain.
        repeat: False if each chip has its own input: x is then [S * B, ...], chip-major.
        programmed: program all layers once, at the entry, and keep W_p [S, *weight.shape]. Forwards without gradients
            then compute library products, on the same chips bit for bit. This pays for several batches with many rows
            per chip, and takes S times the memory of the weights. Later changes of the weights have no effect inside.
            Forwards with gradients, and a `noise` context inside, program as usual. W_p is kept in autocast's dtype.
            For fused layers with ReLU in 16 bits on CUDA, the product of W_p and BatchNorm's scale is kept, rounded
            once.

    Raises:
        ValueError: no noisy layers, or draws out of range. At the forward: BatchNorm with batch statistics and S > 1,
            which would mix chips, or an input whose length is no multiple of S with repeat=False.
        RuntimeError: another thread is inside a context of this model.
    """
    with _swapped(model) as layers:
        device = next(iter(layers.values())).weight.device
        key = noise_key(seed, draws, domain=domain, device=device) if key is None else key
        check_key(key, device)
        keys = {device: key}
        for layer in layers.values():
            here = layer.weight.device
            layer.set_key(keys.setdefault(here, key.to(here)))
        if programmed:
            hold(layers)
        with _at_entry(model, repeat):
            yield model


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
        states = {name: layer.noise_state() for name, layer in noisy_layers(model).items()}
        repeat = not getattr(model, _OWN_INPUTS, False)

        @contextlib.contextmanager
        def replay():
            # Not `_swapped`: autograd may run this in another thread, inside the forward's context.
            layers = noisy_layers(model)
            noted = {layers[name]: state for name, state in states.items()}
            with recomputation.with_states(noted), _at_entry(model, repeat):
                yield

        return contextlib.nullcontext(), replay()

    return context_fn


def hold(layers: dict[str, NoisyLayer]) -> None:
    """Programs all layers for the present chips, in few launches. They use these weights until the context ends."""
    if not layers:
        return
    dtype = autocast_dtype(next(iter(layers.values())).weight.device) or torch.float32
    scales = {layer: layer.row_scale(dtype) for layer in layers.values()}
    for scaled in (False, True):
        held = [layer for layer, scale in scales.items() if (scale is not None) == scaled]
        factors = [scale for scale in scales.values() if scale is not None] if scaled else []
        for layer, weights in zip(held, program_layers(held, dtype, factors), strict=True):
            layer.set_programmed(weights, scaled)


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
    with _swapped(model) as layers:
        before = {layer: layer.shares_codes for layer in layers.values()}
        try:
            for layer in before:
                layer.share_codes(layer.weight.is_cuda)
            yield
        finally:
            for layer, shared in before.items():
                layer.share_codes(shared)


@contextlib.contextmanager
def _swapped(model: nn.Module) -> Iterator[dict[str, NoisyLayer]]:
    """The model's noisy layers. The exit restores their noise state."""
    layers = check_noisy(model)
    with _entered(model), _restored(layers), own_forwards(layers):
        yield layers


@contextlib.contextmanager
def _restored(layers: dict[str, NoisyLayer]) -> Iterator[dict[str, NoisyLayer]]:
    """`layers`. The exit restores their noise state."""
    states = {name: layer.noise_state() for name, layer in layers.items()}
    try:
        yield layers
    finally:
        for name, layer in layers.items():
            layer.set_noise_state(states[name])


@contextlib.contextmanager
def _entered(model: nn.Module) -> Iterator[None]:
    """Refuses a second thread, which would see the noise of the first. Contexts nest within one thread."""
    me = threading.get_ident()
    with _lock:
        owner, depth = _owners.get(model, (me, 0))
        if depth and owner != me:
            fail(
                "model",
                "must not be in noise contexts of two threads at once; use a copy per thread",
                type(model).__name__,
                RuntimeError,
            )
        _owners[model] = (me, depth + 1)
    try:
        yield
    finally:
        with _lock:
            _owners[model] = (me, depth)


@contextlib.contextmanager
def _at_entry(model: nn.Module, repeat: bool) -> Iterator[None]:
    """Makes the model repeat its inputs for the present chips, or take them chip-major. Nested contexts share it."""
    outer = getattr(model, _OWN_INPUTS, False)
    hooked = _prepare_inputs in model._forward_pre_hooks.values()
    handle = None if hooked else model.register_forward_pre_hook(_prepare_inputs, with_kwargs=True)
    setattr(model, _OWN_INPUTS, not repeat)
    try:
        yield
    finally:
        setattr(model, _OWN_INPUTS, outer)
        if handle is not None:
            handle.remove()
            delattr(model, _OWN_INPUTS)


def _prepare_inputs(model: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """Repeats every tensor argument once per chip, unless each chip has its own input.

    The number of chips comes from the called model: a copy made inside a context keeps the hook, but may have left the
    context.
    """
    key = next((m._key for m in model.modules() if isinstance(m, NoisyLayer)), None)
    count = 1 if key is None else key.shape[0]
    if count == 1:
        return args, kwargs
    for name, m in model.named_modules():
        if isinstance(m, _BatchNorm) and (m.training or m.running_mean is None):
            fail(
                name or type(m).__name__,
                f"must use its running statistics for {count} chips in one pass, because batch statistics mix chips: "
                "call model.eval() or run one chip per pass",
                "training mode" if m.training else "track_running_stats=False",
            )
    own_inputs = getattr(model, _OWN_INPUTS, False)
    if not torch.compiler.is_compiling():
        recomputation.note_entry(lambda: _at_entry(model, not own_inputs), model.training)
    if own_inputs:
        for value in (*args, *kwargs.values()):
            if isinstance(value, Tensor) and value.dim() and value.shape[0] % count:
                fail("inputs", f"must be chip-major [{count} * B, ...] under chips(repeat=False)", list(value.shape))
        return args, kwargs

    def repeat(value):
        return torch.cat([value] * count) if isinstance(value, Tensor) and value.dim() else value

    return tuple(repeat(a) for a in args), {k: repeat(v) for k, v in kwargs.items()}
