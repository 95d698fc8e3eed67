"""Converts a plain model to a noisy one, and a noisy one to a plain one or to one programmed chip."""

from __future__ import annotations

import copy
import fnmatch
import warnings
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from nft_ext._common.checks import did_you_mean, fail, integer, module
from nft_ext.device import NVMDevice
from nft_ext.nn import NoisyConv2d, NoisyLayer, NoisyLinear, check_noisy, noisy_layers
from nft_ext.nn.base import as_kind
from nft_ext.nn.fused import FusedLayer
from nft_ext.nn.noise_free import noise_free_layers
from nft_ext.nn.programmed import program_layers
from nft_ext.ops.keys import noise_key, stream_of

_NOISY = {nn.Conv2d: NoisyConv2d, nn.Linear: NoisyLinear}
# What `attach` and `share_codes` set.
_OWN = (
    *("nvm", "name", "stream", "noise_enabled", "shares_codes"),
    *("_shared", "_last", "_spec", "_table", "_key", "_programmed"),
)
_PLAIN = {noisy: plain for plain, noisy in _NOISY.items()}
_SHOWN = 6  # layers that a warning names
Patterns = Iterable[str | type] | str | type | None


def convert(model: nn.Module, nvm: NVMDevice, include: Patterns = None, exclude: Patterns = None) -> nn.Module:
    """A copy of `model` whose Conv2d and Linear layers are noisy.

    Args:
        model: any nn.Module. Noisy layers get the device model `nvm`. Subclasses of Conv2d and Linear stay unchanged,
            because their forward is unknown. Without `include`, a UserWarning names the layers that stay noise-free.
        nvm: the device model.
        include: convert only these layers: qualified names, glob patterns of names, or module types.
        exclude: do not convert these layers.

    Returns:
        The copy, with its own parameters and the state_dict keys of `model`.

    Raises:
        TypeError: `model` or `nvm` has a wrong type.
        ValueError: no layer to convert, a pattern that matches none, or weights that are not finite.
    """
    module("model", model)
    if not isinstance(nvm, NVMDevice):
        fail("nvm", "must be an NVMDevice", type(nvm).__name__, TypeError)
    names = {name: m for name, m in model.named_modules() if type(m) in _NOISY or isinstance(m, NoisyLayer)}
    wanted = _match("include", include, names) if include is not None else set(names)
    wanted -= _match("exclude", exclude, names)
    if not wanted:
        fail("model", "must hold at least one Conv2d or Linear to convert", type(model).__name__)
    for name in wanted:
        _check_finite(name, names[name])
    if include is None:
        _warn_of_noise_free(model, names)
    result = copy.deepcopy(model)
    taken = {m.stream for m in names.values() if isinstance(m, NoisyLayer) and m.name is not None}
    for name in names:  # in the model's order: hash collisions resolve the same way every time
        if name in wanted:
            plain = result.get_submodule(name)
            if isinstance(plain, NoisyLayer):
                plain.attach(nvm, plain.name, plain.stream)
                continue
            stream = stream_of(name, taken)
            taken.add(stream)
            result = _replace(result, plain, _as_noisy(plain, nvm, name, stream))
    _leave_fast_paths(result)
    return result


def restore(model: nn.Module) -> nn.Module:
    """A copy of `model` with plain layers and the trained weights, without noise.

    Raises:
        TypeError: not a module.
        ValueError: a fused model. Restore the model that was fused.
    """
    module("model", model)
    result = copy.deepcopy(model)
    for layer in noisy_layers(result).values():
        result = _replace(result, layer, _as_plain(layer))
    _take_fast_paths(result)
    return result


def program(model: nn.Module, seed: int = 0, draw: int = 0) -> nn.Module:
    """A plain copy of `model` whose weights are the programmed weights of one chip.

    They equal those of chips(model, seed=seed, draws=[draw]) bit for bit, also inside nft_ext.noise.

    Raises:
        TypeError: not a module.
        ValueError: no noisy layers, seed or draw out of range, or weights that are not finite.
    """
    integer("draw", draw, 0, 2**32 - 1)
    key = noise_key(seed, draw)
    for name, layer in check_noisy(model).items():
        _check_finite(name, layer)
    result = copy.deepcopy(model)
    layers = noisy_layers(result)
    for layer in layers.values():
        layer.set_key(key.to(layer.weight.device))
    for layer, chip in zip(layers.values(), program_layers(layers.values(), torch.float32), strict=True):
        plain = _as_plain(layer)
        plain.weight = nn.Parameter(chip[0].to(layer.weight.dtype), requires_grad=layer.weight.requires_grad)
        result = _replace(result, layer, plain)
    _take_fast_paths(result)
    return result


def _check_finite(name: str, layer: nn.Module) -> None:
    weight = layer.weight
    if isinstance(weight, Tensor) and not bool(torch.isfinite(weight).all()):
        fail(f"{name or 'model'}.weight", "must be finite (no NaN, no infinity)", "a tensor that is not")


def _warn_of_noise_free(model: nn.Module, convertible: dict[str, nn.Module]) -> None:
    others = [f"{name} ({type(m).__name__})" for name, m in noise_free_layers(model).items() if name not in convertible]
    if others:
        shown = ", ".join(others[:_SHOWN]) + (f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else "")
        warnings.warn(f"convert: these layers stay noise-free: {shown}", stacklevel=3)


def _as_noisy(plain: nn.Module, nvm: NVMDevice, name: str, stream: int) -> NoisyLayer:
    """The same layer (parameters, hooks, settings) with its noisy class."""
    layer = as_kind(_NOISY[type(plain)], plain)
    layer.attach(nvm, name, stream)
    return layer


def _as_plain(layer: NoisyLayer) -> nn.Module:
    if isinstance(layer, FusedLayer):
        fail(
            "model",
            "must not be fused: call this on the model that was fused",
            f"a {type(layer).__name__} {layer.name}",
        )
    kind = next(_PLAIN[base] for base in type(layer).__mro__ if base in _PLAIN)
    plain = as_kind(kind, layer)
    plain._parameters = dict(layer._parameters)
    for name in _OWN:
        plain.__dict__.pop(name, None)  # models pickled by earlier versions lack some
    return plain


def _replace(root: nn.Module, old: nn.Module, new: nn.Module) -> nn.Module:
    """Replaces `old` by `new` everywhere in `root`; returns the root, which may be `new`."""
    if root is old:
        return new
    for parent in root.modules():
        for key, child in parent._modules.items():
            if child is old:
                parent._modules[key] = new
    return root


def _match(argument: str, patterns: Patterns, names: dict[str, nn.Module]) -> set[str]:
    if patterns is None:
        return set()
    found: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, (str, type)) else list(patterns):
        if isinstance(pattern, type):
            hits = {name for name, m in names.items() if isinstance(m, pattern)}
        else:
            hits = {name for name in names if fnmatch.fnmatchcase(name, pattern) or name.startswith(pattern + ".")}
        if not hits:
            fail(
                argument,
                f"must match a Conv2d or Linear of the model{did_you_mean(pattern, names, most=3)}",
                str(pattern),
            )
        found |= hits
    return found


_FAST_PATHS = {
    nn.TransformerEncoderLayer: ("activation_relu_or_gelu", 0),
    nn.TransformerEncoder: ("use_nested_tensor", False),
}


def _leave_fast_paths(model: nn.Module) -> None:
    """Turns off torch's transformer fast path, which reads the Linears' weights itself and would skip the noise."""
    for m in model.modules():
        for kind, (switch, off) in _FAST_PATHS.items():
            if isinstance(m, kind):
                m.__dict__.setdefault("_fast_path", getattr(m, switch, off))
                setattr(m, switch, off)


def _take_fast_paths(model: nn.Module) -> None:
    """Restores the fast path of plain layers."""
    for m in model.modules():
        for kind, (switch, _) in _FAST_PATHS.items():
            if isinstance(m, kind) and "_fast_path" in m.__dict__:
                setattr(m, switch, m.__dict__.pop("_fast_path"))
