"""Functions that users give: checks of what they are, and of the pairs that a metric returns."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nft_ext._common.checks import fail


def callable_or_none(argument: str, value: Any, what: str) -> Callable | None:
    """`value`, a callable or None; `what` shows its call.

    Raises:
        TypeError: anything else.
    """
    if value is not None and not callable(value):
        fail(argument, f"must be a function {what}, or None", repr(value), TypeError)
    return value


def unwrapped(function: Any) -> Any:
    """The function inside functools.partial."""
    while isinstance(function, functools.partial):
        function = function.func
    return function


def checked_pairs(argument: str, found: Any) -> Tensor:
    """The result of a metric f(output, batch) -> (numerator [B], denominator [B]) as float64 [B, 2].

    Raises:
        TypeError, ValueError: it is no pair of floating-point tensors [B] of one length.
    """
    if not (isinstance(found, (tuple, list)) and len(found) == 2 and all(isinstance(t, Tensor) for t in found)):
        kinds = type(found).__name__
        if isinstance(found, (tuple, list)):
            kinds += f" of {', '.join(type(t).__name__ for t in found) or 'nothing'}"
        fail(argument, "must return two tensors, numerator [B] and denominator [B]", kinds, TypeError)
    numerator, denominator = found
    shapes = f"{numerator.dtype} {list(numerator.shape)} and {denominator.dtype} {list(denominator.shape)}"
    if not (numerator.is_floating_point() and denominator.is_floating_point()):
        fail(argument, "must return floating-point tensors; use .float()", shapes, TypeError)
    if numerator.dim() != 1 or numerator.shape != denominator.shape:
        fail(argument, "must return one numerator and one denominator per example, [B] each", shapes)
    return torch.stack([numerator.detach().double(), denominator.detach().to(numerator.device).double()], dim=1)


def check_parts(argument: str, parts: Tensor, size: int | None) -> None:
    """Checks the numbers [B, K] that a metric takes from a batch of `size` examples (None: unknown).

    Raises:
        ValueError: another number of examples than the batch has, or a number that is not finite.
    """
    if size is not None and len(parts) != size:
        fail(argument, f"must give one pair per example, {size} here", len(parts))
    if not parts.isfinite().all():
        bad = int((~parts.isfinite()).any(dim=1).sum())
        fail(argument, "must be finite for every example of every chip", f"NaN or inf for {bad} of {len(parts)}")
