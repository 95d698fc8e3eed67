"""Weights programmed once for many batches: all layers in few launches, then library products.

This pays with many rows per chip, where programming in each batch would cost time. W_p is the same bit for bit; only
the products are the library's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional

from nft_ext._common.checks import fail
from nft_ext.nn.base import NoisyLayer
from nft_ext.ops import operators
from nft_ext.ops.functional import for_kernels
from nft_ext.ops.operands import in_autocast


@torch.no_grad()
def program_layers(
    layers: Iterable[NoisyLayer], dtype: torch.dtype, scales: Iterable[Tensor] = ()
) -> list[tuple[Tensor, ...]]:
    """W_p of every matrix of every layer on the chips of the layers' key, by one operator call per torch device.

    The caller makes sure that all layers have the same key.

    Args:
        layers: noisy layers.
        dtype: the type of the results.
        scales: empty, or [out] float32 per layer, each with one matrix: factors of the rows, applied before rounding to
            `dtype`.

    Returns:
        [S, *weight.shape] per matrix, per layer.
    """
    layers, scales = list(layers), list(scales)
    every = [(layer, matrix, bar) for layer in layers for matrix, bar in zip(layer.matrices(), layer.crossbars())]
    together = defaultdict(list)
    for place, (layer, matrix, bar) in enumerate(every):
        if bar.weight.dim() < 2:
            name = matrix.name or type(layer).__name__
            fail(f"{name}.weight", "must have a matrix's shape: gather sharded weights first", list(bar.weight.shape))
        together[bar.weight.device].append(place)
    found: list[Tensor] = [torch.empty(0)] * len(every)
    for places in together.values():
        bars = [for_kernels(every[p][2]) for p in places]
        spec = [entry for bar in bars for entry in bar.spec]
        # For tensor cores: torch's convolutions copy weights of other layouts in every call.
        channels_last = bars[0].weight.is_cuda and dtype != torch.float32
        many = operators.ops.program_many(
            [bar.weight for bar in bars],
            [None] * len(bars),
            [],
            [bar.table for bar in bars],
            bars[0].key,
            [bar.stream for bar in bars],
            spec,
            [scales[p] for p in places if scales],
            dtype,
            channels_last,
        )
        for place, weights in zip(places, many, strict=True):
            found[place] = weights
    rest = iter(found)
    return [tuple(next(rest) for _ in layer.matrices()) for layer in layers]


def linear(x: Tensor, weights: Tensor, bias: Tensor | None) -> Tensor:
    """x [S * B, ..., in] chip-major, weights [S, out, in] -> [S * B, ..., out]."""
    x = in_autocast(x)
    weights, bias = weights.to(x.dtype), None if bias is None else bias.to(x.dtype)
    chips = chips_of(x, weights)
    if chips == 1:
        return functional.linear(x, weights[0], bias)
    rows = x.reshape(chips, -1, x.shape[-1])
    y = torch.bmm(rows, weights.mT) if bias is None else torch.baddbmm(bias, rows, weights.mT)
    return y.reshape(*x.shape[:-1], weights.shape[1])


def conv2d(x: Tensor, weights: Tensor, bias: Tensor | None, *convolution) -> Tensor:
    """x [S * B, C, H, W] chip-major, weights [S, out, C / groups, kh, kw] -> [S * B, out, oh, ow]."""
    x = in_autocast(x)
    weights, bias = weights.to(x.dtype), None if bias is None else bias.to(x.dtype)
    chips = chips_of(x, weights)
    if chips == 1:
        return functional.conv2d(x, weights[0], bias, *convolution)
    return torch.cat([functional.conv2d(part, w, bias, *convolution) for part, w in zip(x.chunk(chips), weights)])


def apply_epilogue(
    y: Tensor, scale: Tensor | None, shift: Tensor | None, residual: Tensor | None, relu: bool
) -> Tensor:
    """relu(y * scale + shift + residual) in one loop over y, which it overwrites.

    Args:
        y: [N, out] or [N, out, H, W].
        scale, shift: [out] float32.
        residual: shape and type of y.
        relu: whether to end with ReLU.
    """
    if not (y.is_contiguous() or y.is_contiguous(memory_format=torch.channels_last)):
        y = y.contiguous()
    operators.without_autograd(operators.ops.epilogue_.default, y, scale, shift, residual, relu)
    return y


def chips_of(x: Tensor, weights: Tensor) -> int:
    """The number of chips of `weights`, checked against x."""
    chips = weights.shape[0]
    if x.dim() == 1 and chips > 1:
        fail("x", f"must have a batch dimension for {chips} chips", list(x.shape))
    if x.dim() > 1 and x.shape[0] % chips:
        fail("x", f"dim 0 must be a multiple of the {chips} chips of the key (chip-major)", x.shape[0])
    return chips
