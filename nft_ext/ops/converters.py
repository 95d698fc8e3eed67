"""Converters around a crossbar array: the DAC of its inputs and the ADC of its sums (docs/reference/noise.md).

Plain torch operations, on the CPU and on CUDA. An array's sum is computed in units of the step, because a converter
comes before the digital factor. Gradients are straight-through: 1 inside a converter's range, 0 outside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from nft_ext._common.checks import fail


class Convolution(NamedTuple):
    """The geometry of a convolution, two numbers each, without "same" or "valid"."""

    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int


# (sum of one tile [N, out, ...] in steps) -> nothing; for calibration
Watch = Callable[[Tensor], None]


def rounded(x: Tensor, low: Tensor, high: Tensor, bits: int) -> Tensor:
    """x on the levels of a converter: high * clamp(rint(x / high * L), -L, L) / L, without gradient.

    Args:
        x: values, in any shape.
        low, high: the range, to broadcast against x. low = -high: L = 2^(bits-1) - 1. low = 0: L = 2^bits - 1, and the
            clamp begins at 0.
        bits: of the converter.
    """
    signed = low < 0
    top = torch.where(signed, 2.0 ** (bits - 1) - 1, 2.0**bits - 1).to(x.dtype)
    bottom = torch.where(signed, -top, 0.0)
    level = (x / high * top).round().clamp(bottom, top)
    return torch.where(high == 0, 0.0, high * level / top)


class ConvertedInput(torch.autograd.Function):
    """x_q of x; see `rounded`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, low: Tensor, high: Tensor, bits: int) -> Tensor:
        return rounded(x, low, high, bits)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        x, low, high, _ = inputs
        ctx.save_for_backward((x >= low) & (x <= high))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple:
        (inside,) = ctx.saved_tensors
        return torch.where(inside, grads[0], 0.0), None, None, None


def convert_input(x: Tensor, bits: int, limits: Tensor | None, example_dims: int) -> Tensor:
    """x behind a DAC, in x's type. The arithmetic is float32, or float64 for float64.

    Args:
        x: [..., *example].
        bits: of the DAC.
        limits: [2], low and high of a static range; None: the largest magnitude of each example.
        example_dims: number of dimensions of an example: 1 for an input vector, 3 for an image.
    """
    wide = _wide(x)
    if limits is None:
        dims = tuple(range(-min(example_dims, x.dim()), 0))
        high = wide.detach().abs().amax(dims, keepdim=True)
        low = -high
    else:
        low, high = limits.to(wide.dtype).unbind()
    return ConvertedInput.apply(wide, low, high, bits).to(x.dtype)  # pyright: ignore[reportOptionalMemberAccess]


class TileOutput(torch.autograd.Function):
    """s * ADC(x W^T) of one tile, with W in steps. The gradient of W is that of the programmed weight s W."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, step: Tensor, limit: Tensor, bits: int, convolution: Any) -> Tensor:
        found = rounded(tile_sum(x, weight, convolution), -limit, limit, bits)
        return found * _per_output(step, found)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        *tensors, _, ctx.convolution = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            rule = "must be one with ideal outputs for second derivatives and torch.func.grad (output_bits=None)"
            fail("layer", rule, "a gradient with create_graph=True", RuntimeError)
        x, weight, step, limit = ctx.saved_tensors
        # The sum is computed again: to keep one mask per tile would take memory in proportion to the tiles.
        inside = tile_sum(x, weight, ctx.convolution).abs() <= limit
        grad = torch.where(inside, grads[0], 0.0)
        to_x = to_weight = None
        if ctx.needs_input_grad[0]:
            to_x = _gradients(grad * _per_output(step, grad), x, weight, ctx.convolution, 0)
        if ctx.needs_input_grad[1]:
            to_weight = _gradients(grad, x, weight, ctx.convolution, 1)
        return to_x, to_weight, None, None, None, None


def tile_sum(x: Tensor, weight: Tensor, convolution: Convolution | None) -> Tensor:
    """The sums of one tile: [N, out] from [N, in] and [out, in], or a convolution."""
    if convolution is None:
        return x @ weight.mT
    return functional.conv2d(x, weight, None, *convolution)


def _gradients(grad: Tensor, x: Tensor, weight: Tensor, convolution: Convolution | None, which: int) -> Tensor:
    if convolution is None:
        return grad @ weight if which == 0 else grad.mT @ x
    stride, padding, dilation, groups = convolution
    mask = [which == 0, which == 1, False]
    operands = (grad, x, weight, None, stride, padding, dilation, False, [0, 0], groups, mask)
    return torch.ops.nft_ext.convolution_backward(*operands)[which]


def _per_output(step: Tensor, y: Tensor) -> Tensor:
    return step.view(-1, *[1] * (y.dim() - 2))


def converted_product(
    x: Tensor,
    weights: Tensor,
    steps: Tensor,
    rows: int | None,
    convolution: Convolution | None,
    limit: Tensor | None,
    bits: int,
    watch: Watch | None = None,
) -> Tensor:
    """y[o] = sum_t s[o, t] * ADC(u[o, t]) in the order of t, chip by chip. A chip's result does not depend on others.

    Args:
        x: [S * N, in] or [S * N, C, H, W], chip-major; float32 or float64.
        weights: programmed weights in steps, [S, out, in] or [S, out, C / groups, kh, kw], in x's type.
        steps: s, [out, T], or [out, 1] for all tiles.
        rows: inputs per tile; None: one tile.
        convolution: None for a linear layer.
        limit: r_out []; None: sums are not converted.
        bits: of the ADC.
        watch: called with each u, before its conversion.
    """
    chips = weights.shape[0]
    parts = x.reshape(chips, -1, *x.shape[1:]).unbind() if chips > 1 else (x,)
    results = []
    for part, weight in zip(parts, weights.unbind()):
        y: Tensor | None = None
        for tile, (inputs, block) in enumerate(tiles(part, weight, rows, convolution)):
            step = steps[:, tile if steps.shape[1] > 1 else 0]
            if watch is not None:
                watch(tile_sum(inputs, block, convolution))
            if limit is None:
                found = tile_sum(inputs, block, convolution)
                found = found * _per_output(step, found)
            else:
                found = TileOutput.apply(inputs, block, step, limit, bits, convolution)
            y = found if y is None else y + found
        results.append(y)
    return results[0] if chips == 1 else torch.cat(results)


def tiles(
    x: Tensor, weight: Tensor, rows: int | None, convolution: Convolution | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """(inputs, weights) of each tile in order, for `tile_sum`.

    A tile of a convolution may begin and end inside a kernel. It then convolves all channels that it touches, and the
    weights of other tiles are zero. So nothing is unfolded.
    """
    flat = weight.flatten(1)
    count = flat.shape[1]
    if rows is None or rows >= count:
        yield x, weight
        return
    if convolution is None:
        yield from zip(x.split(rows, 1), flat.split(rows, 1))
        return
    groups, taps = convolution.groups, weight.shape[2] * weight.shape[3]
    grouped = x.unflatten(1, (groups, -1))
    # The gradient of a split is one copy, that of many slices is one per tile.
    whole = grouped.split(rows // taps, 2) if rows % taps == 0 else None
    for tile, own in enumerate(flat.split(rows, 1)):
        first, last = tile * rows, min(count, (tile + 1) * rows)
        channels = first // taps, -(-last // taps)
        block = grouped[:, :, slice(*channels)] if whole is None else whole[tile]
        padding = first - channels[0] * taps, channels[1] * taps - last
        own = functional.pad(own, padding) if any(padding) else own
        yield block.flatten(1, 2), own.unflatten(1, (-1, *weight.shape[2:]))


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
