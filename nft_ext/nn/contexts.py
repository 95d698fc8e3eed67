"""Explicit control of the noise: on or off, how much, and which chips."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nft_ext._common.checks import fail, number
from nft_ext.nn import NoisyLayer, check_noisy, noisy_layers
from nft_ext.nn.programmed import program_layers
from nft_ext.ops.functional import device_at
from nft_ext.ops.keys import noise_key
from nft_ext.ops.operands import autocast_dtype, check_key

_owners: weakref.WeakKeyDictionary[nn.Module, tuple[int, int]] = weakref.WeakKeyDictionary()
_lock = threading.Lock()
_OWN_INPUTS = "_chips_have_own_inputs"  # set on a model inside `chips`: an attribute, since compiled graphs guard on it


@contextlib.contextmanager
def noise(model: nn.Module, enabled: bool | None = None, sigma: float | None = None) -> Iterator[nn.Module]:
    """Inside, the noise of every noisy layer of `model` is on or off, or has another sigma; train() and eval() play no
    part.

    Args:
        model: a noisy model.
        enabled: True, False (layers then compute with the quantized weight W_d), or None to leave it.
        sigma: in the device's own convention (nvm.relative_to), or None to leave it.

    Raises:
        ValueError: no noisy layers, a bad sigma. RuntimeError: another thread is inside a context of this model.
    """
    if sigma is not None:
        sigma = number("sigma", sigma, 0.0)
    with _swapped(model) as layers:
        for layer in layers.values():
            if enabled is not None:
                layer.set_enabled(bool(enabled))
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
    """Inside, `model` runs on the chips `draws`, all of them in one pass.

    The input is repeated once at the model's entry (every tensor argument along dim 0), so model(x [B, ...]) returns
    [S * B, ...], chip-major: y.unflatten(0, (S, B)). Of nested `chips` of one model the innermost holds.

    Args:
        model: a noisy model.
        seed, draws, domain: see `noise_key`; or give `key` int64 [S, 2] itself.
        repeat: False if each chip has an input of its own: x is then [S * B, ...], chip-major itself.
        programmed: program all layers once, at the entry, in few launches, and keep W_p [S, *weight.shape] of each (in
            autocast's dtype where that is on; in 16 bits on CUDA, of fused layers that end in ReLU, W_p times
            BatchNorm's scale, rounded once); forwards without gradients then use torch's products on them. The same
            chips bit for bit, the results up to the rounding of the products. It pays where many rows a chip follow in
            several batches, and costs S times the weights' memory. The weights are those of the entry; `noise` within,
            and gradients, program as usual.

    Raises:
        ValueError: no noisy layers, draws out of range; at the forward: BatchNorm that uses batch statistics with S >
            1, which would mix chips, or with repeat=False an input that is not S times as long as a chip's.
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
    """The `context_fn` of torch.utils.checkpoint for use inside `noise` or `chips`.

    The recomputation in the backward then runs with the noise of the forward, also when the context has been left by
    then. Without it, gradients would be wrong without a message.

    Args:
        model: the noisy model.
    """

    def context_fn():
        states = {name: layer.noise_state() for name, layer in noisy_layers(model).items()}
        repeat = not getattr(model, _OWN_INPUTS, False)

        @contextlib.contextmanager
        def replay():
            # Not a second owner: autograd may run this in a thread of its own while the forward's context waits for it.
            with _restored(noisy_layers(model)) as layers:
                for name, layer in layers.items():
                    layer.set_noise_state(states[name])
                with _at_entry(model, repeat):
                    yield

        return contextlib.nullcontext(), replay()

    return context_fn


def hold(layers: dict[str, NoisyLayer]) -> None:
    """Programs all layers for the chips in force, in few launches; they compute with that until the context ends."""
    if not layers:
        return
    dtype = autocast_dtype(next(iter(layers.values())).weight.device) or torch.float32
    scales = {layer: layer.row_scale(dtype) for layer in layers.values()}
    for scaled in (False, True):
        held = [layer for layer, scale in scales.items() if (scale is not None) == scaled]
        for layer, weights in zip(
            held, program_layers(held, dtype, [scales[layer] for layer in held if scaled]), strict=True
        ):
            layer.set_programmed(weights, scaled)


@contextlib.contextmanager
def shared_codes(model: nn.Module) -> Iterator[None]:
    """Inside, all forwards of `model` and their backwards quantize each weight on CUDA once, in training too, where the
    step otherwise takes passes of its own in each of them. On the CPU nothing changes: there the operators find it on
    their way.

    For several forwards between two changes of the weights. What is shared is made inside and dropped at the exit, so a
    CUDA graph that holds the context makes it anew in every replay.

    Raises:
        ValueError: no noisy layers. RuntimeError: another thread is inside a context of this model.
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
    """The model's noisy layers; whatever is done to their noise inside is undone at the exit."""
    layers = check_noisy(model)
    with _entered(model) as outermost, _restored(layers):
        if outermost:
            for layer in layers.values():
                layer.forget_codes()
        yield layers


@contextlib.contextmanager
def _restored(layers: dict[str, NoisyLayer]) -> Iterator[dict[str, NoisyLayer]]:
    """`layers`, whose noise is afterwards what it was."""
    states = {name: layer.noise_state() for name, layer in layers.items()}
    try:
        yield layers
    finally:
        for name, layer in layers.items():
            layer.set_noise_state(states[name])


@contextlib.contextmanager
def _entered(model: nn.Module) -> Iterator[bool]:
    """Contexts of one model nest within a thread; a second thread would see the first one's noise, so it is refused.

    Gives whether this is the outermost context.
    """
    me = threading.get_ident()
    with _lock:
        owner, depth = _owners.get(model, (me, 0))
        if depth and owner != me:
            fail(
                "model",
                "must not be in two threads' noise contexts at once; use a copy per thread",
                type(model).__name__,
                RuntimeError,
            )
        _owners[model] = (me, depth + 1)
    try:
        yield depth == 0
    finally:
        with _lock:
            _owners[model] = (me, depth)


@contextlib.contextmanager
def _at_entry(model: nn.Module, repeat: bool) -> Iterator[None]:
    """The model repeats its inputs for the chips in force, or takes them chip-major; one hook serves nested contexts."""
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
    """Every tensor argument once per chip of the key in force, unless chips have inputs of their own. The count comes
    from the
    model that is called: a copy made inside a context keeps the hook, and is no longer in the context."""
    key = next((m._key for m in model.modules() if isinstance(m, NoisyLayer)), None)
    count = 1 if key is None else key.shape[0]
    if count == 1:
        return args, kwargs
    for name, m in model.named_modules():
        if isinstance(m, _BatchNorm) and (m.training or m.running_mean is None):
            fail(
                name or type(m).__name__,
                f"must use its running statistics for {count} chips in one pass, batch statistics would "
                "mix chips: call model.eval() or run one chip a pass",
                "training mode" if m.training else "track_running_stats=False",
            )
    if getattr(model, _OWN_INPUTS, False):
        for value in (*args, *kwargs.values()):
            if isinstance(value, Tensor) and value.dim() and value.shape[0] % count:
                fail("inputs", f"must be chip-major [{count} * B, ...] under chips(repeat=False)", list(value.shape))
        return args, kwargs

    def repeat(value):
        return torch.cat([value] * count) if isinstance(value, Tensor) and value.dim() else value

    return tuple(repeat(a) for a in args), {k: repeat(v) for k, v in kwargs.items()}
