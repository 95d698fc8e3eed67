"""Targets of the cross-entropy, checked against the logits; and outputs that are probabilities instead of logits.

torch's cross_entropy takes every pair of tensors of equal shape for class probabilities, and axis 1 for the classes.
Targets of a regression and outputs [B, T, C] then train on nothing, or on the wrong axis.
"""

from __future__ import annotations

import math
import warnings
import weakref
from typing import Any

import torch
from torch import Tensor, nn

from nft_ext._common.checks import fail

IGNORED = -100  # label of positions without a class, as in torch's cross_entropy
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
AT_LEAST = 16  # fewer positive logits may lie in 0..1 by chance

_seen: weakref.WeakSet[nn.Module] = weakref.WeakSet()  # models whose first outputs were examined


def checked_target(logits: Tensor, target: Any, model: nn.Module | None = None, stacklevel: int = 4) -> Tensor:
    """`target` for torch's cross_entropy of `logits` `[B, C, d1, ...]`, C >= 2.

    Class indices on a CUDA device are not read, because that waits for the device. torch's kernel stops at wrong ones.

    Args:
        logits: `[B, C]`, or `[B, C, d1, ...]` for dense predictions.
        target: integers `[B]` or `[B, d1, ...]` in 0..C-1, or -100 at positions to ignore; or class probabilities, of a
            floating-point dtype and the shape of the logits, whose sum over dim 1 is 1.
        model: the model of the logits. If its first outputs are probabilities, a UserWarning says so.
        stacklevel: of that warning, as for warnings.warn.

    Returns:
        int64 class indices, or the probabilities.

    Raises:
        TypeError: target is not a tensor.
        ValueError: the logits have fewer than two classes; a shape, a dtype or a value of the target does not fit; or
            the shapes leave open which axis holds the classes.
    """
    if not isinstance(target, Tensor):
        fail("target", "must be a tensor of class indices", type(target).__name__, TypeError)
    shape = list(logits.shape)
    if logits.dim() < 2 or shape[1] < 2:
        rule = "must return logits [B, C] or [B, C, d1, ...] with C >= 2 classes; give criterion= for a regression"
        fail("model", rule, f"shape {shape}")
    if model is not None:
        _warn_of_probabilities(model, logits, stacklevel)
    if target.is_floating_point() and list(target.shape) == shape:
        _check_probabilities(target)
        return target
    _check_index_shape(logits, target)
    if target.dtype not in INTEGERS:
        fail("target", "must hold integers, the index of each class", str(target.dtype))
    target = target.long()
    if target.device.type == "cpu" and _readable(target):
        _check_indices(target, shape[1])
    return target


def probability_note(logits: Tensor) -> str | None:
    """What is wrong with logits `[B, C, ...]` that are probabilities; None if they are not.

    Outputs of a log_softmax are no fault: a second log_softmax leaves them as they are.
    """
    if logits.dim() < 2 or logits.shape[1] < 2 or not logits.numel() or not _readable(logits):
        return None
    values = logits.detach().float()
    low, high, off = _read(*values.aminmax(), (values.sum(dim=1) - 1.0).abs().max())
    if not (low >= 0.0 and high <= 1.0):  # also true for NaN
        return None
    if off <= _tolerance(logits):
        return "the outputs of the model are probabilities (each row sums to 1), not logits"
    if low > 0.0 and values.numel() >= AT_LEAST:
        return "all outputs of the model lie in 0..1, as after a sigmoid; they are probabilities, not logits"
    return None


def _warn_of_probabilities(model: nn.Module, logits: Tensor, stacklevel: int) -> None:
    """A UserWarning if the first logits of `model` are probabilities. Later calls do nothing."""
    if torch.compiler.is_compiling() or model in _seen or not _readable(logits):
        return
    _seen.add(model)
    note = probability_note(logits)
    if note is not None:
        warnings.warn(
            f"{note}. The cross-entropy takes their softmax again, so the loss is wrong: remove the model's "
            "last activation",
            stacklevel=stacklevel,
        )


def _check_index_shape(logits: Tensor, target: Tensor) -> None:
    """Refuses all shapes but `[B]` for `[B, C]` and `[B, d1, ...]` for `[B, C, d1, ...]`."""
    shape, found = list(logits.shape), list(target.shape)
    got = f"target {target.dtype} {found} for logits {shape}"
    classes_last = logits.dim() > 2 and found == shape[:-1]
    if found != [shape[0], *shape[2:]]:
        if classes_last:
            fail(
                "target",
                "must fit logits [B, classes, ...]. Return logits.movedim(-1, 1) if the classes come last",
                got,
            )
        rule = f"must be class indices {[shape[0], *shape[2:]]} or class probabilities {shape}"
        fail("target", f"{rule}; give criterion= for a regression", got)
    if classes_last:
        rule = "must leave no doubt where the classes are. Return logits [B * positions, C] and flatten the target"
        fail("target", rule, f"{got}, whose dims 1 and {logits.dim() - 1} may both hold the classes")


def _check_indices(target: Tensor, classes: int) -> None:
    if not target.numel():
        fail("target", "must hold at least one label", "an empty tensor")
    low, high = _read(*target.aminmax())
    if not (low < 0 or high >= classes):
        return
    labels = target[target != IGNORED]
    if not labels.numel():
        fail("target", f"must hold at least one label that is not ignored ({IGNORED})", f"{target.numel()} ignored")
    low, high = map(int, _read(*labels.aminmax()))
    if low < 0 or high >= classes:
        rule = f"must lie in 0..{classes - 1}, the model's classes, or be {IGNORED} to be ignored"
        fail("target", rule, low if low < 0 else high)


def _check_probabilities(target: Tensor) -> None:
    if not _readable(target):
        return
    if not target.numel():
        fail("target", "must hold at least one row of class probabilities", "an empty tensor")
    values = target.detach().float()
    least, off = values.min(), (values.sum(dim=1) - 1.0).abs().max()
    wrong = ~((least >= 0.0) & (off <= _tolerance(target)))  # also true for NaN
    if _read(wrong)[0] == 1.0:
        low, off = _read(least, off)
        rule = "of the shape of the logits must be class probabilities, >= 0 with sum 1 over dim 1"
        fail(
            "target",
            f"{rule}; give criterion= for a regression",
            f"minimum {low:.3g}, a sum off by {off:.3g}",
        )


def _tolerance(values: Tensor) -> float:
    """Largest rounding error of a sum of probabilities."""
    return 1e-2 if values.dtype in (torch.float16, torch.bfloat16) else 1e-3


def _readable(values: Tensor) -> bool:
    """Whether values may be read: not while a graph is traced or captured, and not of meta tensors."""
    if torch.compiler.is_compiling() or values.is_meta:
        return False
    return not (values.is_cuda and torch.cuda.is_current_stream_capturing())


def _read(*scalars: Tensor) -> list[float]:
    """The scalars as floats; NaN if they have no values, as inside vmap or a fake tensor mode."""
    try:
        return [float(scalar) for scalar in scalars]
    except RuntimeError:
        return [math.nan] * len(scalars)
