"""Converts a plain model to a noisy one, and a noisy one to a plain one or to one programmed chip."""

from __future__ import annotations

import contextlib
import fnmatch
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, cast

import torch
from torch import nn

from nft_ext._common.checks import boolean, did_you_mean, fail, integer, module
from nft_ext.device import NVMDevice
from nft_ext.nn import NoisyConv2d, NoisyLayer, NoisyLinear, check_noisy, noisy_layers, weight_level
from nft_ext.nn.base import refuse_converters
from nft_ext.nn.candidates import candidates, has_operator, matrix_names, parameter_of
from nft_ext.nn.converters import drop_ranges
from nft_ext.nn.coverage.account import coverage_of
from nft_ext.nn.coverage.warning import left_digital
from nft_ext.nn.crossbars import only_on_request
from nft_ext.nn.effective import fix
from nft_ext.nn.example import check_example, run_example
from nft_ext.nn.fused import FusedLayer
from nft_ext.nn.in_place import check_outside, unchanged_on_error
from nft_ext.nn.names import select
from nft_ext.nn.noise_free import check_no_lazy_layers, noise_free_layers, shared_weights, stay_noise_free
from nft_ext.nn.programmed import program_layers
from nft_ext.nn.replaceable import check_replaceable, check_weight
from nft_ext.nn.replaced import copied, drop_own_methods
from nft_ext.nn.streams import keep_names, keepers
from nft_ext.ops.keys import noise_key, settled_streams

_NOISY = {nn.Conv2d: NoisyConv2d, nn.Linear: NoisyLinear}
# What `attach` and `share_codes` set.
_OWN = (
    *("nvm", "name", "stream", "noise_enabled", "shares_codes", "scaled"),
    *("_last", "_spec", "_table", "_key", "_programmed", "_met_as", "_changes", "_owner", "_entry"),
    *("_name", "_placed", "_swapped", "injectable", "injecting"),
)
_PLAIN = {noisy: plain for plain, noisy in _NOISY.items()}
Patterns = Iterable[str | type] | str | type | None


def convert(
    model: nn.Module,
    nvm: NVMDevice,
    include: Patterns = None,
    exclude: Patterns = None,
    *,
    example: Any = None,
    inplace: bool = False,
) -> nn.Module:
    """Puts the matrices of a copy of `model` onto noisy crossbars, or those of `model` itself with inplace=True.

    Linear and Conv2d become NoisyLinear and NoisyConv2d. Every other layer with matrices keeps its class and runs its
    own forward on programmed weights: other convolutions, recurrent layers, attention, Bilinear, subclasses,
    parametrized, normed and pruned layers, expert weights, and classes given to `register_crossbar`.

    Args:
        model: any nn.Module. If a matrix stays digital that `include` and `exclude` did not leave out, a UserWarning
            gives the share of matrix weights on crossbars and names the biggest such matrices. `nft_ext.coverage`
            lists all. A UserWarning also names noisy layers whose weight another module reads, as a tied embedding
            does.
        nvm: the device model of all layers that become noisy.
        include: convert only these layers: qualified names, glob patterns of names, or module types. An embedding
            becomes noisy only if its own name or type is given.
        exclude: do not convert these layers.
        example: an input of the model: a tensor, a tuple of arguments or a mapping of keyword arguments. The noisy copy
            runs it once, in eval mode without gradients. A UserWarning names noisy layers that did not run, because
            their weight is read instead of the layer called. The forward then shows what is a matrix, and gives the
            share of multiply-accumulates. Random generators, buffers and training flags are restored.
        inplace: change `model` itself. No weight is copied. Modules, parameters, hooks and optimizers stay the same
            objects. After an error nothing has changed, also if the error is a warning that was turned into one.

    Weights on the meta device have no values yet. Their layers become noisy, and the forward checks the values that
    `load_state_dict(..., assign=True)` or `to_empty` and `load_state_dict` bring.

    Returns:
        The copy, with its own parameters and the state_dict keys of `model`; or `model`.

    Raises:
        TypeError: `model`, `nvm`, `example` or a weight has a wrong type.
        ValueError: no layer to convert, a pattern that matches none, weights that are not finite, or an example that
            the model does not accept. Also a layer that is lazy or sharded, whose forward was replaced on the instance,
            or whose class has an attribute that noisy layers need. The message says what to do first.
        RuntimeError: inplace=True inside a noise context of the model.
    """
    module("model", model)
    boolean("inplace", inplace)
    if not isinstance(nvm, NVMDevice):
        fail("nvm", "must be an NVMDevice", type(nvm).__name__, TypeError)
    check_example(example)
    if isinstance(model, torch.jit.ScriptModule):
        fail("model", "must not be scripted or traced: convert first", type(model).__name__, TypeError)
    layers = candidates(model)
    chosen = None if include is None else _patterns(include)
    if chosen is None:
        wanted = {name for name, (_, layer) in layers.items() if not only_on_request(layer)}
    else:
        wanted = _match("include", chosen, layers, model)
    wanted -= _match("exclude", _patterns(exclude), layers, model)
    if chosen is None:
        check_no_lazy_layers(model)
    if not wanted:
        fail("model", "must hold at least one layer with a matrix to convert", type(model).__name__)
    for name, (_, layer) in layers.items():
        if name in wanted:
            if nvm.has_converters and (isinstance(layer, FusedLayer) or not has_operator(layer)):
                refuse_converters(name, type(layer).__name__)
            if not isinstance(layer, NoisyLayer):
                check_replaceable(name, layer, "convert")
            check_weight(name, layer, "convert")
    with _target(model, [layer for _, layer in layers.values()], "convert", inplace) as result:
        _become_noisy(result, nvm, {name: path for name, (path, _) in layers.items()}, wanted)
        asked_for = None if chosen is None else lambda name, layer: _hits(chosen, name, name, layer)
        observation, products = (None, None) if example is None else run_example(result, example)
        texts = [left_digital(coverage_of(result, products), result, asked_for), shared_weights(result)]
        texts += [] if observation is None else observation.texts("in a forward of the example")
        _warn("convert", [text for text in texts if text])
        return result


def _become_noisy(result: nn.Module, nvm: NVMDevice, layers: dict[str, str], wanted: set[str]) -> None:
    """Makes the layers `wanted` noisy. layers: name -> path of all layers that could be."""
    found = {name: result.get_submodule(path) for name, path in layers.items()}
    streams = _final_streams(found)
    for name, layer in found.items():
        if name in wanted:
            _make_noisy(layer).attach(nvm, *streams[name])
        elif isinstance(layer, NoisyLayer):
            layer.name, layer.stream = streams[name]
    keep_names({name: layer for name, layer in found.items() if isinstance(layer, NoisyLayer)})
    _leave_fast_paths(result)


@contextlib.contextmanager
def _target(model: nn.Module, layers: list[nn.Module], task: str, inplace: bool) -> Iterator[nn.Module]:
    """What `task` changes: a copy of the model, or itself unless an error ends the context."""
    if not inplace:
        yield copied(model)
        return
    check_outside(layers, task)
    with unchanged_on_error(model):
        yield model


def restore(model: nn.Module, *, inplace: bool = False) -> nn.Module:
    """Returns a copy of `model` with plain layers and the trained weights, or `model` itself with inplace=True.

    Raises:
        TypeError: not a module.
        ValueError: a fused model (restore the model that was fused), a Linear or Conv2d that was pruned or parametrized
            after its conversion, or a layer whose forward was replaced on the instance.
        RuntimeError: inplace=True inside a noise context of the model.
    """
    module("model", model)
    boolean("inplace", inplace)
    # Not `noisy_layers`, which names layers: plain weights do not depend on names.
    noisy = select(model, lambda m: isinstance(m, NoisyLayer))
    for name, (_, layer) in noisy.items():
        _check_unfused(name, layer)
        check_replaceable(name, layer, "restore")
    with _target(model, [layer for _, layer in noisy.values()], "restore", inplace) as result:
        for path, _ in noisy.values():
            _make_plain(result.get_submodule(path))
        _take_fast_paths(result)
        return result


def program(model: nn.Module, seed: int = 0, draw: int = 0) -> nn.Module:
    """A plain copy of `model` whose weights are the programmed weights of one chip.

    They equal those of chips(model, seed=seed, draws=[draw]) bit for bit, also inside nft_ext.noise.

    Raises:
        TypeError: not a module.
        ValueError: no noisy layers, seed or draw out of range, weights that are not finite, a fused model, a layer with
            converters (a plain layer has none), a layer on the meta device or whose forward was replaced on the
            instance, or a Linear or Conv2d that was pruned or parametrized after its conversion.
    """
    integer("draw", draw, 0, 2**32 - 1)
    key = noise_key(seed, draw)
    for name, layer in check_noisy(model).items():
        _check_unfused(name, layer)
        if layer.nvm.has_converters:
            rule = "must have no input_bits and output_bits, because a plain layer has no converters. Use nft_ext.chips"
            fail(name or "model", rule, str(layer.nvm))
        check_replaceable(name, layer, "program")
        check_weight(name, layer, "program")
    result = copied(model)
    layers = list(noisy_layers(result).values())
    for layer in layers:
        layer.set_key(key.to(layer.anchor.device))
    for layer, chips in zip(layers, program_layers(layers, torch.float32), strict=True):
        parameters = [parameter_of(matrix) for matrix in layer.matrices()]
        plain = _make_plain(layer)
        for parameter, chip in zip(parameters, chips):
            path, _, name = parameter.rpartition(".")
            fix(plain.get_submodule(path), name, chip[0])
    _take_fast_paths(result)
    return result


def _final_streams(layers: dict[str, nn.Module]) -> dict[str, tuple[str, Any]]:
    """name -> (layer's name, its stream or those of its matrices). Noisy layers that have final ones keep them.

    All layers that could be noisy count. So a later call that converts the others gives the same streams.
    """
    noisy = {name: layer for name, layer in layers.items() if isinstance(layer, NoisyLayer)}
    matrices = {part: m for name, layer in noisy.items() for part, m in layer.matrices_by_name(name).items()}
    kept = {id(matrix): matrix for matrix in keepers(matrices)}
    own = {name for name, layer in noisy.items() if all(id(m) in kept for m in layer.matrices())}
    parts = {name: matrix_names(name, layer) for name, layer in layers.items() if name not in own}
    taken = {m.stream for name in own for m in noisy[name].matrices()}
    streams = settled_streams([part for names in parts.values() for part in names], taken)
    found: dict[str, tuple[str, Any]] = {name: (noisy[name].name or name, noisy[name].stream) for name in own}
    for name, names in parts.items():
        each = tuple(streams[part] for part in names)
        found[name] = name, each[0] if has_operator(layers[name]) else each
    return found


def _warn(argument: str, texts: list[str]) -> None:
    for text in texts:
        warnings.warn(f"{argument}: {text}", stacklevel=3)


def _make_noisy(layer: nn.Module) -> NoisyLayer:
    """The layer itself, now of its noisy class. So everything that refers to it runs with noise."""
    if not isinstance(layer, NoisyLayer):
        drop_own_methods(layer)
        if has_operator(layer):
            layer.__class__ = _NOISY[type(layer)]
        else:
            weight_level.make_noisy(layer)
    return cast("NoisyLayer", layer)


def _make_plain(layer: nn.Module) -> nn.Module:
    """The layer itself, now of its plain class."""
    drop_own_methods(layer)
    if isinstance(layer, weight_level.WeightLevelLayer):
        weight_level.make_plain(layer)
    else:
        drop_ranges(layer)
        layer.__class__ = next(_PLAIN[base] for base in type(layer).__mro__ if base in _PLAIN)
    for name in _OWN:
        layer.__dict__.pop(name, None)  # models pickled by earlier versions lack some
    return layer


def _check_unfused(name: str, layer: nn.Module) -> None:
    if isinstance(layer, FusedLayer):
        fail(
            "model",
            "must not be fused: call this on the model that was fused",
            f"a {type(layer).__name__} {name}",
        )


def _match(
    argument: str, patterns: list[str | type], layers: dict[str, tuple[str, nn.Module]], model: nn.Module
) -> set[str]:
    found: set[str] = set()
    for pattern in patterns:
        hits = {name for name, (path, layer) in layers.items() if _hits([pattern], name, path, layer)}
        if argument == "include":  # a table of embeddings must be meant itself, not a module around it
            hits = {n for n in hits if not only_on_request(layers[n][1]) or _means(pattern, n, layers[n][0])}
        if not hits:
            others = {name: m for name, m in noise_free_layers(model).items() if _hits([pattern], name, name, m)}
            near = "" if others else did_you_mean(pattern, layers, most=3)
            rule = f"must match a layer of the model that has a matrix{near}"
            fail(argument, "; ".join([rule, *stay_noise_free(others)]), str(pattern))
        found |= hits
    return found


def _patterns(patterns: Patterns) -> list[str | type]:
    if patterns is None:
        return []
    return [patterns] if isinstance(patterns, (str, type)) else list(patterns)


def _hits(patterns: list[str | type], name: str, path: str, layer: nn.Module) -> bool:
    """Whether a pattern names the layer: its type, its name, or its path, which has the names of wrappers."""
    for pattern in patterns:
        if isinstance(pattern, type):
            if isinstance(layer, pattern):
                return True
        elif any(fnmatch.fnmatchcase(text, pattern) or text.startswith(pattern + ".") for text in (name, path)):
            return True
    return False


def _means(pattern: str | type, name: str, path: str) -> bool:
    """Whether a pattern that matches a layer names it, or its type, and not only something around it."""
    if isinstance(pattern, type):
        return pattern is not nn.Module
    last = pattern.rpartition(".")[2]
    return any(c.isalnum() for c in last) and any(fnmatch.fnmatchcase(text, pattern) for text in (name, path))


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
