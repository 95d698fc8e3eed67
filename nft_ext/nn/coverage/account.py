"""`nft_ext.coverage`: which matrices of a model sit on crossbars."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from nft_ext._common.checks import module
from nft_ext.nn.base import NoisyLayer
from nft_ext.nn.coverage.parameters import held_by
from nft_ext.nn.coverage.products import Products
from nft_ext.nn.coverage.rows import Row, row_of
from nft_ext.nn.coverage.table import Coverage
from nft_ext.nn.example import check_example, run_example
from nft_ext.nn.names import named


def coverage(model: nn.Module, example: Any = None) -> Coverage:
    """Says which matrices of a model sit on crossbars, which are digital, and why.

    Digital means on no crossbar: computed exactly. Every parameter of two or more dimensions has a row. The shares
    count the matrices that multiply activations. Embeddings, position tables, class tokens, norms, biases and
    per-channel scales are listed, but not counted. For a plain model the rows say what `convert` would do.

    Args:
        model: any nn.Module, plain or noisy.
        example: an input of the model: a tensor, a tuple of arguments or a mapping of keyword arguments. The model runs
            it once, in eval mode without gradients. The forward shows which parameters are multiplied by activations,
            also as views, casts or parts, and counts multiply-accumulates. Random generators, buffers and training
            flags are restored. None: the module's class decides what is a matrix, then shape and name of the parameter.

    Returns:
        The coverage. `print` shows a table.

    Raises:
        TypeError: `model` or `example` has a wrong type.
        ValueError: a lazy layer without a shape, or an example that the model does not accept.
    """
    module("model", model)
    check_example(example)
    return coverage_of(model, None if example is None else run_example(model, example)[1])


def coverage_of(model: nn.Module, seen: Products | None) -> Coverage:
    """The coverage, with what a forward of the model showed."""
    parameters = held_by(model) if seen is None else seen.held
    planned = not any(isinstance(m, NoisyLayer) for _, _, m in named(model))
    reads = [None] * len(parameters) if seen is None else seen.reads
    rows = [row_of(held, read, planned) for held, read in zip(parameters, reads, strict=True)]
    return Coverage(_with_shares(rows), planned, seen is not None)


def _with_shares(rows: list[Row]) -> list[Row]:
    cells = sum(row.cells for row in rows if row.counted)
    known = all(row.macs is not None for row in rows if row.counted)
    macs = sum(row.macs or 0 for row in rows if row.counted and known)
    return [
        replace(
            row,
            weight_share=row.cells / cells if row.counted and cells else None,
            mac_share=row.macs / macs if row.counted and row.macs is not None and macs else None,
        )
        for row in rows
    ]
