"""Straight-through derivatives of the compiled operators: autograd Functions for graphs, and others for eager mode.

dL/dW = dL/dW_p; dL/dx uses the forward's W_p, programmed again from the key. Arguments of a forward: x, weight, bias,
then tensors without gradient, then static values.

A Function with `setup_context` has rules for torch.func and is what torch.compile traces. But torch binds its arguments
by name, and reads its signature again, in every call: that takes longer than a small product. In eager mode without
a transform the backward goes through Functions whose `forward` takes the context.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from nft_ext.ops import autograd
from nft_ext.ops.same_noise import check_same_noise, noise_of_forward

ops = torch.ops.nft_ext
_unwrapped = torch._C._functorch.unwrap_if_dead  # pyright: ignore[reportAttributeAccessIssue]
_TENSORS = 7  # x, weight, bias, codes, step, table, key


def _setup_product(ctx: Any, inputs: tuple, output: Any) -> None:
    x, weight, bias, *noise = inputs[:_TENSORS]
    ctx.save_for_backward(x, weight, *noise)
    ctx.weight_dtype, ctx.bias_dtype = weight.dtype, None if bias is None else bias.dtype
    ctx.noise_then = noise_of_forward(noise[-2], noise[-1])
    ctx.static = inputs[_TENSORS:]


def _gradients_of_product(ctx: Any, grad: Tensor, operator: Any) -> tuple:
    """Of x, weight and bias: by the compiled kernel, or by torch operations where a gradient is differentiated."""
    x, weight, *noise = ctx.saved_tensors
    check_same_noise(ctx.noise_then, noise[-2], noise[-1])
    needs = ctx.needs_input_grad
    wanted = needs[0] | needs[1] << 1 | (needs[2] and ctx.bias_dtype is not None) << 2
    if grad.dtype != x.dtype:
        grad = grad.to(x.dtype)
    arguments = (grad, x, weight, *noise, *ctx.static, int(wanted))
    if autograd.is_special():
        grads = autograd.call_special(operator, *arguments)
    elif torch.compiler.is_compiling() or torch.is_grad_enabled():
        grads = operator(*arguments)
    else:
        grads = without_autograd(operator, *arguments)
    of_x, of_weight, of_bias = grads
    return (
        of_x if wanted & 1 else None,
        of_weight.to(ctx.weight_dtype) if wanted & 2 else None,
        of_bias.to(ctx.bias_dtype) if wanted & 4 else None,
    )


def _backward_product(ctx: Any, grad: Tensor, operator: Any) -> tuple:
    """One entry per argument of the Function."""
    return (*_gradients_of_product(ctx, grad, operator), *[None] * (_TENSORS - 3 + len(ctx.static)))


# The forwards name every parameter: torch.compile counts them to find out whether a context comes first.


class Program(torch.autograd.Function):
    """Programmed weights [S, *weight.shape]. The gradient is the sum over chips."""

    @staticmethod
    def forward(weight, codes, step, table, key, stream, spec, dtype):
        return without_gradient(ops.program.default, weight, codes, step, table, key, stream, spec, dtype)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.weight_dtype = inputs[0].dtype

    @staticmethod
    def backward(ctx, *grads):
        return (grads[0].sum(0, dtype=torch.float32).to(ctx.weight_dtype), *[None] * 7)


class NoisyLinear(torch.autograd.Function):
    """y [S * B, out] from x [B, in] or [S * B, in]."""

    @staticmethod
    def forward(x, weight, bias, codes, step, table, key, stream, spec, shared):
        bar = (codes, step, table, key, stream, spec)
        return without_gradient(ops.noisy_linear.default, x, weight, bias, *bar, shared)

    setup_context = staticmethod(_setup_product)

    @staticmethod
    def backward(ctx, *grads):
        return _backward_product(ctx, grads[0], ops.noisy_linear_backward.default)


class NoisyConv2d(torch.autograd.Function):
    """y [S * B, out, oh, ow] from x [B, C, H, W] or [S * B, C, H, W]."""

    @staticmethod
    def forward(x, weight, bias, codes, step, table, key, stream, spec, stride, padding, dilation, groups, shared):
        bar, geometry = (codes, step, table, key, stream, spec), (stride, padding, dilation, groups)
        return without_gradient(ops.noisy_conv2d.default, x, weight, bias, *bar, *geometry, shared)

    setup_context = staticmethod(_setup_product)

    @staticmethod
    def backward(ctx, *grads):
        return _backward_product(ctx, grads[0], ops.noisy_conv2d_backward.default)


# ---- the same in eager mode. All arguments behind the differentiable ones come as one tuple: autograd looks at every
# argument of a Function, and wants a gradient for it.


class _EagerProgram(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight, rest):
        ctx.weight_dtype = weight.dtype
        return without_autograd(ops.program.default, weight, *rest)

    @staticmethod
    def backward(ctx, *grads):
        return grads[0].sum(0, dtype=torch.float32).to(ctx.weight_dtype), None


def _eager_product(name: str, operator: Any, gradients: Any) -> type[torch.autograd.Function]:
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, rest: tuple) -> Tensor:
        _setup_product(ctx, (x, weight, bias, *rest), None)
        return without_autograd(operator, x, weight, bias, *rest)

    def backward(ctx: Any, grad: Tensor) -> tuple:
        return (*_gradients_of_product(ctx, grad, gradients), None)

    parts = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    kind: Any = type(torch.autograd.Function)
    return kind(name, (torch.autograd.Function,), parts)


_EagerLinear = _eager_product("NoisyLinear", ops.noisy_linear.default, ops.noisy_linear_backward.default)
_EagerConv2d = _eager_product("NoisyConv2d", ops.noisy_conv2d.default, ops.noisy_conv2d_backward.default)

# Function -> (arguments with derivatives, apply in eager mode). torch's own `apply` looks for `setup_context` and calls
# this one.
_EAGER: dict[Any, tuple[int, Any]] = {
    general: (first, cast(Any, super(torch.autograd.Function, eager)).apply)
    for general, first, eager in (
        (Program, 1, _EagerProgram),
        (NoisyLinear, 3, _EagerLinear),
        (NoisyConv2d, 3, _EagerConv2d),
    )
}


def apply_function(function: type[torch.autograd.Function], *arguments: Any) -> Any:
    """`function.apply(*arguments)` where no transform is active; in eager mode at a fraction of its cost."""
    if torch.compiler.is_compiling():
        return function.apply(*arguments)
    first, apply = _EAGER[function]
    # As torch's own `apply`: a tensor that outlived its transform is an ordinary one.
    return apply(*[None if v is None else _unwrapped(v) for v in arguments[:first]], arguments[first:])


def without_gradient(operator: Any, *arguments: Any) -> Any:
    """Calls an operator that needs no gradient here, in eager mode or in a graph."""
    return operator(*arguments) if torch.compiler.is_compiling() else without_autograd(operator, *arguments)


def without_autograd(operator: Any, *arguments: Any) -> Any:
    """Calls the operator below torch's autograd layer, which costs more than a small product.

    For eager mode and calls that need no gradient. Inside torch.func and forward-mode differentiation the layer sees
    the call nevertheless.
    """
    if autograd.is_special():
        return autograd.call_special(operator, *arguments)
    if torch.is_inference_mode_enabled():  # autograd is off already
        return operator(*arguments)
    with torch._C._AutoDispatchBelowAutograd():
        return operator(*arguments)
