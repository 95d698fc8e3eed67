"""Checks the arrays that the functions of this folder take: numbers, finite, of the stated shape."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from nft_ext._common.checks import fail


def sample(argument: str, values: Any, dims: tuple[int, ...], symbols: str, least: int = 1) -> np.ndarray:
    """Converts `values` to a checked float64 array.

    Args:
        argument: name of the argument, for messages.
        values: array, tensor, sequence or number.
        dims: allowed numbers of dimensions.
        symbols: the allowed shapes, for messages.
        least: smallest length of the first dimension.

    Raises:
        ValueError: a wrong number of dimensions, too few rows, rows of different lengths, NaN, infinity, no numbers.
    """
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().numpy()
    try:
        given = np.asarray(values)
    except (TypeError, ValueError) as error:
        fail(argument, f"must be numbers {symbols}", str(error))
    if isinstance(values, np.ma.MaskedArray) or given.dtype.kind not in "iuf":
        fail(argument, f"must be numbers {symbols}", _kind(values, given))
    array = given.astype(np.float64)
    if array.ndim not in dims:
        fail(argument, f"must have shape {symbols}", f"shape {list(array.shape)}")
    if array.ndim and (len(array) < least or array.size == 0):
        fail(argument, f"must have shape {symbols} with at least {least} rows", f"shape {list(array.shape)}")
    if not np.isfinite(array).all():
        bad = np.argwhere(~np.isfinite(array))[0]
        fail(argument, "must be finite", f"{array[tuple(bad)]} at {[int(i) for i in bad]}")
    return array


def row_means(array: np.ndarray) -> np.ndarray:
    """[n] unchanged; [n, m] averaged over the last axis."""
    return array if array.ndim == 1 else array.mean(axis=1)


def _kind(values: Any, given: np.ndarray) -> str:
    """What `values` are, for a message: numpy would read truth values, digits in strings and masked values."""
    if isinstance(values, np.ma.MaskedArray):
        return "a masked array"
    return {"b": "truth values", "U": "strings", "S": "strings", "c": "complex numbers"}.get(
        given.dtype.kind, f"{given.dtype} values"
    )
