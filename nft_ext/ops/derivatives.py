"""Registers the derivatives of every raw operator. nft_ext.ops.autograd says when they are used.

In the signatures, `rest` begins with the crossbar: codes, step, table, key, stream and spec.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from nft_ext.ops import autograd, differentiable, functions, operators  # noqa: F401  (fake kernels)

ops = torch.ops.nft_ext
_BAR = 6  # the crossbar's arguments


def _program(weight: Tensor, *rest: Any) -> Tensor:
    return differentiable.straight_through(weight, ops.program(weight.detach(), *rest))


def _programmed(weight: Tensor, bar: tuple, dtype: torch.dtype) -> Tensor:
    """W_p in x's dtype. The noise is that of the float32 weight; the derivative of a float64 weight is not rounded."""
    if dtype != torch.float64:
        return ops.program(weight, *bar, dtype)
    programmed = ops.program(weight.detach().float(), *bar, torch.float32)
    return differentiable.straight_through(weight, programmed.double())


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
    bar, static = rest[:_BAR], rest[_BAR:]
    return differentiable.linear(x, _programmed(weight, bar, x.dtype), bias, *static)


def _linear_backward(grad: Tensor, x: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    bar, static = rest[:_BAR], rest[_BAR:]
    return differentiable.linear_gradients(grad, x, _programmed(weight, bar, x.dtype), *static)


def _conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
    bar, static = rest[:_BAR], rest[_BAR:]
    return differentiable.conv2d(x, _programmed(weight, bar, x.dtype), bias, *static)


def _conv2d_backward(grad: Tensor, x: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    bar, static = rest[:_BAR], rest[_BAR:]
    return differentiable.conv2d_gradients(grad, x, _programmed(weight, bar, x.dtype), *static)


autograd.differentiable("program", 1, _program, functions.Program)
autograd.differentiable("noisy_linear", 3, _linear, functions.NoisyLinear)
autograd.differentiable("noisy_linear_backward", 3, _linear_backward)
autograd.differentiable("noisy_conv2d", 3, _conv2d, functions.NoisyConv2d)
autograd.differentiable("noisy_conv2d_backward", 3, _conv2d_backward)
autograd.constant("weight_step")  # max|W| is a constant
autograd.constant("weight_step_many")


_INSTEAD = {
    "noisy_linear_fused": "noisy_linear and the epilogue in torch operations",
    "noisy_conv2d_fused": "noisy_conv2d and the epilogue in torch operations",
    "noisy_cascade": "noisy_linear and noisy_conv2d",
    "program_many": "program",
    "epilogue_": "torch operations",
    "convolution_backward": "torch.ops.aten.convolution_backward",
}


def _refuse(name: str, why: str) -> None:
    raise RuntimeError(
        f"nft_ext::{name}: arguments must not {why}, the operator has no derivative; got one that does. "
        f"Call it under torch.no_grad() without tangents, or use {_INSTEAD[name]}."
    )


for _name in _INSTEAD:
    autograd.refused(_name, functools.partial(_refuse, _name))


@torch.library.register_vmap("nft_ext::program")  # pyright: ignore[reportOptionalCall]  (a decorator)
def _(info, in_dims, weight, codes, step, table, key, stream, spec, dtype):
    """Over keys [V, S, 2]: one call with V * S chips. Over weights: one call per weight."""
    given = (weight, codes, step, table, key)
    if any(dim is not None for dim in in_dims[:4]):
        each = [
            [
                None if t is None else (t if dim is None else t.select(dim, i)).contiguous()
                for t, dim in zip(given, in_dims)
            ]
            for i in range(info.batch_size)
        ]
        return torch.stack([ops.program(*one, stream, spec, dtype) for one in each]), 0
    key = key.movedim(in_dims[4], 0)
    out = ops.program(weight, codes, step, table, key.reshape(-1, 2).contiguous(), stream, spec, dtype)
    return out.unflatten(0, key.shape[:2]), 0
