"""Products and their gradients from torch's own differentiable operations.

The compiled kernels have first derivatives only. Every other derivative comes from these compositions on the programmed
weights of the same key: W_p [S, *weight.shape], by the operator `program`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from nft_ext.ops.deterministic import convolution_backward


def straight_through(weight: Tensor, programmed: Tensor) -> Tensor:
    """`programmed` [S, *weight.shape], bit for bit, with the derivative of `weight` for every chip.

    Subtracting the zero w - w changes no bit, not even the sign of a zero. `detach` cuts every level of torch.func, so
    `programmed` must come from weight.detach().
    """
    return programmed - (weight.detach() - weight).to(programmed.dtype)


def _per_chip(rows: Tensor, chips: int) -> Tensor:
    """[S, B, ...] from chip-major rows [S * B, ...]."""
    return rows.unflatten(0, (chips, rows.shape[0] // chips))


def linear(x: Tensor, w_p: Tensor, bias: Tensor | None, shared: bool) -> Tensor:
    """[S * B, out] from x [B, in] or [S * B, in] and W_p [S, out, in] in x's dtype."""
    chips = w_p.shape[0]
    if chips == 1:
        return functional.linear(x, w_p[0], None if bias is None else bias.to(x.dtype))
    y = torch.matmul(x if shared else _per_chip(x, chips), w_p.mT)
    return (y if bias is None else y + bias.to(x.dtype)).flatten(0, 1)


def linear_gradients(grad: Tensor, x: Tensor, w_p: Tensor, shared: bool, wanted: int) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias from grad [S * B, out]; those not in `wanted` are empty."""
    by_chip = _per_chip(grad, w_p.shape[0])
    total = by_chip.sum(0) if shared else grad
    grad_x = torch.matmul(by_chip, w_p) if wanted & 1 else None
    if grad_x is not None:
        grad_x = grad_x.sum(0) if shared else grad_x.flatten(0, 1)
    return _in_order(grad_x, total.mT @ x if wanted & 2 else None, total.sum(0) if wanted & 4 else None, x)


def conv2d(
    x: Tensor,
    w_p: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    shared: bool,
) -> Tensor:
    """[S * B, out, oh, ow] from x [B, C, H, W] or [S * B, C, H, W] and W_p [S, out, C / groups, kh, kw]."""
    bias = None if bias is None else bias.to(x.dtype)
    parts = [x] * w_p.shape[0] if shared else x.chunk(w_p.shape[0])
    products = [
        functional.conv2d(part, chip, bias, stride, padding, dilation, groups) for part, chip in zip(parts, w_p)
    ]
    return products[0] if len(products) == 1 else torch.cat(products)


def conv2d_gradients(
    grad: Tensor,
    x: Tensor,
    w_p: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    shared: bool,
    wanted: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias from grad [S * B, out, oh, ow]; those not in `wanted` are empty."""
    chips, out = w_p.shape[:2]
    mask = [bool(wanted >> i & 1) for i in range(3)]
    parts = [x] * chips if shared else x.chunk(chips)
    found = [
        convolution_backward(part_grad, part, w, [out], stride, padding, dilation, False, [0, 0], groups, mask)
        for part_grad, part, w in zip(grad.chunk(chips), parts, w_p)
    ]
    grad_x, grad_w, grad_b = zip(*found)
    return _in_order(
        (_total(grad_x) if shared else torch.cat(grad_x)) if mask[0] else None,
        _total(grad_w) if mask[1] else None,
        _total(grad_b) if mask[2] else None,
        x,
    )


def _total(by_chip: tuple[Tensor, ...]) -> Tensor:
    return by_chip[0] if len(by_chip) == 1 else torch.stack(by_chip).sum(0)


def _in_order(
    grad_x: Tensor | None, grad_w: Tensor | None, grad_b: Tensor | None, x: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The results of a backward operator: x's gradient in x's dtype, the others in float32 or float64."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    weight, bias = (x.new_empty(0, dtype=wide) if g is None else g.to(wide) for g in (grad_w, grad_b))
    return x.new_empty(0) if grad_x is None else grad_x, weight, bias
