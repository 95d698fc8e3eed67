"""Refuses layers that cannot become noisy or plain as they are, and says what to do first."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize

from nft_ext._common.checks import fail
from nft_ext.nn.replaced import replaced_method

_PART = 1 << 20  # weights that are checked at once
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


def check_weight(name: str, layer: nn.Module, task: str) -> None:
    """Refuses a weight that has no values, no plain type, another shape than its class, or NaN or infinity.

    On the meta device there are no values to check yet: `convert` leaves that to the forwards.

    Args:
        name, layer, task: as in `check_replaceable`.

    Raises:
        TypeError, ValueError: the message says what to do first.
    """
    name = f"{name or 'model'}.weight"
    weight = layer.weight
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
    if not weight.is_floating_point():
        fail(name, f"must be of a floating-point type: {task} before quantization", str(weight.dtype), TypeError)
    dims = next((dims for kind, dims in _DIMS.items() if isinstance(layer, kind)), weight.dim())
    if weight.dim() != dims:
        fail(name, f"must have {dims} dimensions: {task} before FSDP shards the model", list(weight.shape))
    if not weight.is_meta and not _is_finite(weight.detach()):
        fail(name, "must be finite (no NaN, no infinity)", "a tensor that is not")


def _is_finite(weight: Tensor) -> bool:
    """Whether all values are. In parts: torch.isfinite takes several times the memory of its input."""
    return all(bool(torch.isfinite(part).all()) for part in weight.split(max(1, _PART // max(1, weight[:1].numel()))))
