"""Refuses layers that cannot become noisy or plain as they are, and says what to do first."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize

from nft_ext._common.checks import fail
from nft_ext.nn.base import NoisyLayer
from nft_ext.nn.candidates import has_operator, parameter_of, taken_names
from nft_ext.nn.crossbars import matrices
from nft_ext.nn.effective import is_known, refresh
from nft_ext.nn.replaced import replaced_method
from nft_ext.nn.weight_level import WeightLevelLayer

_PART = 1 << 20  # weights that are checked at once
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_DIMS = {nn.Linear: 2, nn.Conv2d: 4}


def check_replaceable(name: str, layer: nn.Module, task: str) -> None:
    """Refuses a layer whose forward or whose own weight is not that of its class.

    Args:
        name: the layer's qualified name.
        layer: a Linear or Conv2d, plain or noisy.
        task: what the caller wants to do: "convert", "restore" or "program".

    Raises:
        TypeError, ValueError: the message says what to do first.
    """
    name = name or "model"
    if (method := replaced_method(layer)) is not None:
        fail(
            f"{name}.{method}",
            "must be that of the layer's class, but was replaced on the instance, as by accelerate's hooks. Remove "
            f"them (accelerate.hooks.remove_hook_from_submodules), {task}, then add them again",
            type(vars(layer)[method]).__name__,
        )
    if isinstance(layer, WeightLevelLayer) or not has_operator(layer):
        _check_weight_level(name, layer, task)
        return
    if parametrize.is_parametrized(layer):
        fail(
            name,
            f"must have no parametrization: call torch.nn.utils.parametrize.remove_parametrizations, then {task}",
            f"parametrized {', '.join(layer.parametrizations)}",  # pyright: ignore[reportArgumentType, reportCallIssue]
        )
    for which in ("weight", "bias"):
        if which not in layer._parameters:
            fail(
                f"{name}.{which}",
                "must be a parameter of the layer itself. Undo pruning (torch.nn.utils.prune.remove), weight norm "
                f"(remove_weight_norm), spectral norm (remove_spectral_norm) or FSDP, then {task}",
                "a tensor made of " + (", ".join(key for key in layer._parameters if which in key) or "others"),
            )


def _check_weight_level(name: str, layer: nn.Module, task: str) -> None:
    if not isinstance(layer, NoisyLayer) and (taken := taken_names(layer)):
        fail(
            name,
            "must have no attribute that a noisy layer needs for itself: rename it in the class",
            ", ".join(taken),
        )
    for parameter in _parameters(layer):
        path, _, weight = parameter.rpartition(".")
        holder = layer.get_submodule(path)
        if not is_known(holder, weight):
            fail(
                f"{name}.{parameter}",
                "must be a parameter, or made of some by parametrize, prune, weight_norm or spectral_norm of "
                f"torch.nn.utils. Undo FSDP and other wrappers, or "
                f"give register_crossbar a parameter's name, then {task}",
                type(getattr(holder, weight, None)).__name__,
            )
    if getattr(layer, "max_norm", None) is not None or getattr(layer, "sparse", False):
        fail(name, "must be an Embedding without max_norm and sparse, which write to the weight", "one with them")


def _parameters(layer: nn.Module) -> list[str]:
    if isinstance(layer, NoisyLayer):
        return [parameter_of(matrix) for matrix in layer.matrices()]
    return [matrix.parameter for matrix in matrices(layer)]


def check_weight(name: str, layer: nn.Module, task: str) -> None:
    """Refuses a weight that has no values, no plain type, another shape than its class, or NaN or infinity.

    On the meta device there are no values to check yet: `convert` leaves that to the forwards.

    Args:
        name, layer, task: as in `check_replaceable`.

    Raises:
        TypeError, ValueError: the message says what to do first.
    """
    dims = next((dims for kind, dims in _DIMS.items() if isinstance(layer, kind)), None)
    for parameter in _parameters(layer):
        path, _, weight = parameter.rpartition(".")
        holder = layer.get_submodule(path)
        with torch.no_grad():
            refresh(holder, weight)
            _check_values(f"{name or 'model'}.{parameter}", getattr(holder, weight), dims, task)
    for matrix in () if isinstance(layer, NoisyLayer) else matrices(layer):
        if "e" in matrix.layout and getattr(layer, matrix.parameter).dim() != 3:
            shape = list(getattr(layer, matrix.parameter).shape)
            fail(f"{name}.{matrix.parameter}", f"must have three dimensions for the layout {matrix.layout!r}", shape)


def _check_values(name: str, weight: Any, dims: int | None, task: str) -> None:
    if isinstance(weight, UninitializedParameter):
        fail(name, f"must have a shape: run the model once, so that lazy layers get theirs, then {task}", "lazy")
    if not isinstance(weight, Tensor) or type(weight.detach()) is not Tensor:
        fail(
            name,
            f"must be a plain tensor: {task} before the model is sharded (fully_shard), quantized or traced",
            type(weight).__name__,
            TypeError,
        )
    if weight.is_meta and task != "convert":
        fail(
            name,
            "must have values, not be on the meta device. Load the weights (load_state_dict(..., assign=True)) and "
            f"remove offloading hooks, then {task}",
            "meta",
        )
    if weight.dtype not in _DTYPES:
        fail(name, f"must be of a floating-point type: {task} before quantization", str(weight.dtype), TypeError)
    if weight.layout is not torch.strided:
        fail(name, f"must be dense: call .to_dense(), then {task}", str(weight.layout), TypeError)
    if dims not in (None, weight.dim()):
        fail(name, f"must have {dims} dimensions: {task} before FSDP shards the model", list(weight.shape))
    if weight.dim() < 2:
        rule = f"must have two or more dimensions: {task} before FSDP shards the model"
        fail(name, rule, list(weight.shape))
    if not weight.is_meta and not _is_finite(weight.detach()):
        fail(name, "must be finite (no NaN, no infinity)", "a tensor that is not")


def _is_finite(weight: Tensor) -> bool:
    """Whether all values are. In parts: torch.isfinite takes several times the memory of its input."""
    return all(bool(torch.isfinite(part).all()) for part in weight.split(max(1, _PART // max(1, weight[:1].numel()))))
