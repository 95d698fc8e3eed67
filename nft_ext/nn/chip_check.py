"""The check that chips may share a pass of a model: two chips in one pass equal one pass per chip.

Chips mix in silence in a model whose dim 0 is not the batch, or that joins inputs along dim 0. So the check compares
the result, and what every noisy layer sees: its rows in one pass must be those of the passes per chip, chip-major. A
layer whose result does not count yet, as behind a factor of zero, is then checked too.

Converters are off in the check: they turn one unit in the last place into one level.

The two chips of the check have weights far from each other. So the outcome does not depend on the device model, on
sigma, or on whether the noise is on.
"""

from __future__ import annotations

import contextlib
import random
import sys
import weakref
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _get_current_dispatch_mode

from nft_ext.nn.base import NoisyLayer
from nft_ext.nn.chip_inputs import signature, tensors_of
from nft_ext.nn.converters import without_converters
from nft_ext.ops.keys import noise_key

# Largest difference of equal values, relative to the largest value. Two ways to batch the same products differ far less
# (rounding). A model that mixes chips differs far more.
SAME, SAME_16_BITS = 1e-3, 5e-2
_MOST = 64  # kinds of input that are remembered per model

Forward = Callable[[list[int]], Any]

# Model -> the modules that it had, and per kind of input the reason against several chips in one pass, or None.
_known: weakref.WeakKeyDictionary[nn.Module, tuple[list, dict]] = weakref.WeakKeyDictionary()


def known(model: nn.Module, modules: list[nn.Module]) -> dict[Hashable, str | None]:
    """The outcomes of earlier checks of this model, by kind of input. Empty after its modules have changed."""
    now = list(map(weakref.ref, modules))
    then = _known.get(model)
    if then is None or then[0] != now:
        then = _known[model] = (now, {})
    if len(then[1]) > _MOST:
        then[1].clear()
    return then[1]


def kind_of(modules: list[nn.Module], inputs: Any) -> Hashable:
    """What the outcome for a model depends on: the kind of its inputs, and which modules are in training mode."""
    return signature(inputs), tuple([m.training for m in modules])


def forget(model: nn.Module) -> None:
    """Drops the outcomes of earlier checks."""
    _known.pop(model, None)


def impossible(layers: list[NoisyLayer]) -> bool:
    """Whether no check can run here: values are not known, or all operations are recorded."""
    return (
        torch._C._are_functorch_transforms_active()
        or torch._C._get_tracing_state() is not None
        or _get_current_dispatch_mode() is not None
        or (torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing())
        or any(layer.anchor.is_meta for layer in layers)
    )


@torch.no_grad()
def why_apart(forward: Forward, modules: list[nn.Module], layers: list[NoisyLayer]) -> tuple[str | None, bool]:
    """Compares two chips in one pass with one pass per chip.

    The model is in its present mode, training or not, but without dropout, whose masks differ between passes. Its
    attributes and buffers, and the random generators, are as before when the check ends. Hooks see the three passes.

    Args:
        forward: forward(chosen) calls the model for the chips `chosen`, out of 0 and 1.
        modules: all modules of the model.
        layers: its layers with several chips.

    Returns:
        The reason why chips must not share a pass, or None if they may; and whether that holds for later passes too.
        It does not if the two chips give the same result: then a mixture would not show.
    """
    with _as_before(modules, layers), _NoDropout(), without_converters(layers):
        for module in modules:
            if isinstance(module, (nn.MultiheadAttention, nn.RNNBase)):
                module.__dict__["dropout"] = 0.0
        seen: list[tuple[int, Tensor]] = []
        present: list[int] = []
        hooks = [
            hook
            for place, layer in enumerate(layers)
            for hook in (
                layer.register_forward_pre_hook(_before(place, present, seen)),
                layer.register_forward_hook(_after),
            )
        ]
        keys = noise_key(0, range(2))  # for layers whose forward is called without hooks

        def run(chosen: list[int]) -> tuple[list[Tensor], list[tuple[int, Tensor]]]:
            seen.clear()
            present[:] = chosen
            for layer in layers:
                layer.set_key(keys[chosen].to(layer.anchor.device))
            return tensors_of(forward(chosen)), list(seen)

        try:
            # In float32 if possible: what 16 bits round differently adds up in a deep model.
            kinds = {"cpu", *(layer.anchor.device.type for layer in layers)}
            active = [kind for kind in kinds if torch.is_autocast_enabled(kind)]
            with contextlib.ExitStack() as off:
                for kind in active:
                    off.enter_context(torch.autocast(kind, enabled=False))
                outcome = _outcome(run, layers)
            return outcome if outcome[1] or outcome[0] is None or not active else _outcome(run, layers)
        finally:
            for hook in hooks:
                hook.remove()


def _outcome(run: Callable, layers: list[NoisyLayer]) -> tuple[str | None, bool]:
    lasting = False  # an error of one chip alone may come from these inputs
    try:
        alone = run([0]), run([1])
        lasting = True
        together = run([0, 1])
    except Exception as error:
        if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
            raise
        first_line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        return f"{'two chips in one pass fail' if lasting else 'the check fails'}: {first_line}", lasting
    return _compared(alone, together, layers)


def _compared(alone: tuple, together: tuple, layers: list[NoisyLayer]) -> tuple[str | None, bool]:
    (results, seen), (others, seen_by_other), (joint, joint_seen) = *alone, together
    if not [place for place, _ in seen] == [p for p, _ in seen_by_other] == [p for p, _ in joint_seen]:
        return "two chips in one pass call other layers than two passes", True
    tensors = [*results, *(x for _, x in seen)]
    same = SAME_16_BITS if any(t.dtype in (torch.bfloat16, torch.float16) for t in tensors) else SAME
    for (place, a), (_, b), (_, found) in zip(seen, seen_by_other, joint_seen):
        name = layers[place].name
        if a.dim() == 0 or a.shape != b.shape or found.shape != (2 * a.shape[0], *a.shape[1:]):
            return f"two chips in one pass give layer {name!r} inputs of another shape", True
        off = difference(found, torch.cat([a, b]))
        if not off <= same:
            return f"two chips in one pass differ from two passes by {off:.1e} at the input of layer {name!r}", True
    if not len(results) == len(others) == len(joint):
        return "two chips in one pass give another number of tensors", True
    for a, b, found in zip(results, others, joint):
        if a.dim() == 0:
            expected = (a + b) / 2 if a.is_floating_point() else a
        elif a.shape != b.shape:
            return "two chips give results of different shapes", True
        else:
            expected = torch.cat([a, b])
        if found.shape != expected.shape:
            return "two chips in one pass give a result of another shape", True
        off = difference(found, expected)
        if not off <= same:
            return f"two chips in one pass differ from two passes by {off:.1e} of the largest result", True
    return None, any(difference(a, b) > same for a, b in zip(results, others))


def difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference between two tensors of equal shape, relative to the largest finite value expected.

    Infinite and undefined values must be the same. Integers differ by at least 1 if at all.
    """
    if not found.numel() or (found == expected).all():
        return 0.0
    if not (found.is_floating_point() or found.is_complex()):
        return 1.0
    equal = (found == expected) | (found.isnan() & expected.isnan())
    off = (found - expected).abs().masked_fill(equal, 0.0).max()
    largest = expected.abs().masked_fill(~expected.isfinite(), 0.0).max()
    return float(off.double() / largest.double().clamp_min(1e-30))


class _NoDropout(TorchFunctionMode):
    """Torch's functions, with dropout turned off."""

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if "dropout" in getattr(func, "__name__", ""):
            return args[0] if args else kwargs["input"]
        return func(*args, **{**kwargs, "dropout_p": 0.0} if "dropout_p" in kwargs else kwargs)


def _before(place: int, present: list[int], seen: list[tuple[int, Tensor]]) -> Callable:
    def hook(layer: NoisyLayer, args: tuple) -> None:
        matrices = zip(layer.master_weights(), layer.matrices())
        layer.hold_programmed([torch.stack([_far(w, m.stream, chip) for chip in present]) for w, m in matrices])
        if args and isinstance(args[0], Tensor):
            seen.append((place, args[0].detach().clone()))  # a later layer may write to it

    return hook


def _after(layer: NoisyLayer, args: tuple, result: Any) -> None:
    layer.__dict__["_programmed"] = None  # one layer's weights at a time


def _far(weight: Tensor, stream: int, chip: int) -> Tensor:
    """The weight plus a random matrix of rank one, as large as the weight, or as large as usual for a weight of 0."""
    weight = weight.detach().float()
    rows, columns = weight.shape[0], weight[0].numel()
    spread = weight.square().mean().sqrt().clamp_min(columns**-0.5)
    normal = torch.randn(rows + columns, generator=torch.Generator().manual_seed(2 * stream + chip))
    normal = normal.to(weight.device)
    return weight + spread * torch.outer(normal[:rows], normal[rows:]).view(weight.shape)


@contextlib.contextmanager
def _as_before(modules: list[nn.Module], layers: list[NoisyLayer]) -> Iterator[None]:
    """Restores attributes and buffers of the modules, and the random generators."""
    attributes = [(m, type(m), dict(m.__dict__)) for m in modules]
    containers = [(v, v.copy()) for _, _, own in attributes for v in own.values() if type(v) in (list, dict, set)]
    buffers = [(b, b.clone()) for m in modules for b in m._buffers.values() if b is not None]
    devices = {layer.anchor.device.index for layer in layers if layer.anchor.is_cuda}
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002  (users' forwards may use it)
    cached = torch.is_autocast_cache_enabled()
    eager = torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else contextlib.nullcontext()
    try:
        # Casts made without gradients must not serve the forward that follows in the same autocast.
        torch.set_autocast_cache_enabled(False)
        with torch.random.fork_rng(sorted(d for d in devices if d is not None)), eager:
            yield
    finally:
        torch.set_autocast_cache_enabled(cached)
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        for m, kind, own in attributes:
            if type(m) is kind:  # a lazy module becomes another one in its first forward, for good
                for name in m.__dict__.keys() - own.keys():
                    del m.__dict__[name]
                m.__dict__.update(own)
        for container, entries in containers:
            _refill(container, entries)
        for buffer, value in buffers:
            if not torch.equal(buffer, value):  # a copy in vain would disturb a pending backward
                buffer.copy_(value)


def _refill(container: Any, entries: Any) -> None:
    if isinstance(container, set):
        if container != entries:
            container.clear()
            container.update(entries)
    elif isinstance(container, list):
        if list(map(id, container)) != list(map(id, entries)):
            container[:] = entries
    elif list(map(id, container.values())) != list(map(id, entries.values())) or list(container) != list(entries):
        container.clear()
        container.update(entries)
