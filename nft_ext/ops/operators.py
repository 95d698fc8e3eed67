"""Fake kernels of the compiled operators, and the calls that choose between operator and autograd Function.

Arguments are those of csrc/operators/schemas.cpp. The raw operators `torch.ops.nft_ext.*` have the same derivatives as
the public functions: nft_ext.ops.autograd says which calls the compiled kernels serve.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from nft_ext._common.checks import fail
from nft_ext.ops import autograd, deterministic  # noqa: F401  (a kernel)
from nft_ext.ops.convolution import check_output_size, output_size
from nft_ext.ops.functions import apply_function, without_autograd, without_gradient  # noqa: F401

ops = torch.ops.nft_ext
SPEC_INTS = 8  # of NVMDevice.operator_spec


def _channels_last(x: Tensor) -> bool:
    """The kernels' rule for the result's memory format (is_channels_last in csrc/operators/aten.h)."""
    return (
        x.dim() == 4
        and x.is_contiguous(memory_format=torch.channels_last)
        and suggest_memory_format(x) == torch.channels_last
    )


def _rows(x: Tensor, key: Tensor, shared: bool) -> int:
    return x.shape[0] * key.shape[0] if shared else x.shape[0]


# ---- fake kernels: shapes, dtypes and strides without data


@torch.library.register_fake("nft_ext::weight_step")
def _(weight, weight_bits, scaling=()):
    return weight.new_empty(step_shape(weight, scaling), dtype=torch.float32)


def step_shape(weight: Tensor, scaling: Sequence[int]) -> tuple[int, ...]:
    """The shape of a weight's steps: [], [E], [E, O] or [E, O, T] (same rule in csrc/operators/crossbar.h)."""
    sharing, tile_rows, output_dim, groups = scaling or (0, 0, 0, 1)
    if sharing == 0:
        return ()
    groups = groups or weight.shape[0]
    outputs = weight.shape[output_dim]
    shape = (groups, outputs, -(-(weight.numel() // (groups * outputs)) // tile_rows) if sharing == 3 else 1)
    return shape[:sharing]


@torch.library.register_fake("nft_ext::quantize")
def _(weight, step, weight_bits, scaling=()):
    return torch.empty(weight.shape, dtype=torch.int16 if weight_bits <= 15 else torch.int32, device=weight.device)


@torch.library.register_fake("nft_ext::program")
def _(weight, codes, step, table, key, stream, spec, dtype):
    return torch.empty((key.shape[0], *weight.shape), dtype=dtype, device=weight.device)


@torch.library.register_fake("nft_ext::weight_step_many")
def _(weights, weight_bits):
    return weights[0].new_empty((len(weights),), dtype=torch.float32)


@torch.library.register_fake("nft_ext::program_many")
def _(weights, codes, steps, tables, key, streams, specs, scales, dtype, channels_last=False):
    return [
        _programmed(weight, key.shape[0], specs[SPEC_INTS * i : SPEC_INTS * (i + 1)], dtype, channels_last)
        for i, weight in enumerate(weights)
    ]


def _programmed(weight: Tensor, chips: int, spec: list[int], dtype: torch.dtype, channels_last: bool) -> Tensor:
    """[S, *weight.shape] in the kernels' layout (same rule in csrc/cuda/torch/operands.h)."""
    if channels_last and can_be_channels_last(weight, spec):
        flat = (chips * weight.shape[0], *weight.shape[1:])
        found = torch.empty(flat, dtype=dtype, device=weight.device, memory_format=torch.channels_last)
        return found.unflatten(0, (chips, weight.shape[0]))
    return torch.empty((chips, *weight.shape), dtype=dtype, device=weight.device)


def can_be_channels_last(weight: Tensor, spec: list[int]) -> bool:
    """Whether a weight can be programmed with channels last. `spec`: NVMDevice.operator_spec."""
    if not weight.is_cuda or weight.dim() != 4 or spec[2] != 1 or spec[0] > 12 or spec[4] != 0:
        return False
    channels, taps = weight.shape[1], weight.shape[2] * weight.shape[3]
    return 2 <= taps <= 128 and 2 <= channels <= 1 << 15 and weight.numel() % 8 == 0


@torch.library.register_fake("nft_ext::epilogue_")
def _(y, scale, shift, residual, relu):
    return None


@torch.library.register_fake("nft_ext::noisy_linear")
@torch.library.register_fake("nft_ext::noisy_linear_fused")
def _(x, weight, bias, codes, step, table, key, stream, spec, shared, *epilogue):
    return x.new_empty((_rows(x, key, shared), weight.shape[0]))


@torch.library.register_fake("nft_ext::noisy_conv2d")
@torch.library.register_fake("nft_ext::noisy_conv2d_fused")
def _(x, weight, bias, codes, step, table, key, stream, spec, stride, padding, dilation, groups, shared, *epilogue):
    size = _size(x, weight, stride, padding, dilation)
    return _image(x, (_rows(x, key, shared), weight.shape[0], *size))


@torch.library.register_fake("nft_ext::noisy_cascade")
def _(inputs, weights, biases, tables, keys, streams, specs, scales, shifts, wiring, kept):
    values = list(inputs)
    for layer, (weight, key) in enumerate(zip(weights, keys)):
        x, _, _, *geometry = wiring[10 * layer : 10 * layer + 10]
        x, rows = values[x], _rows(values[x], key, key.shape[0] == 1)
        if weight.dim() == 2:
            values.append(x.new_empty((rows, weight.shape[0])))
            continue
        size = _size(x, weight, geometry[:2], geometry[2:4], geometry[4:6])
        values.append(_image(x, (rows, weight.shape[0], *size)))
    return [values[value] for value in kept]


def _size(x: Tensor, weight: Tensor, stride: list[int], padding: list[int], dilation: list[int]) -> list[int]:
    """[oh, ow]; refuses what the kernels refuse."""
    image, kernel = x.shape[2:], weight.shape[2:]
    size = output_size(image, kernel, stride, padding, dilation)
    check_output_size(image, kernel, padding, dilation, size)
    return size


def _image(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """An empty result of `shape` in x's memory format."""
    layout = torch.channels_last if _channels_last(x) else torch.contiguous_format
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout)


def _fake_gradients(x: Tensor, weight: Tensor, wanted: int) -> tuple[Tensor, ...]:
    shapes = (x.shape, weight.shape, weight.shape[:1])
    grads = [
        torch.empty(shape if wanted >> i & 1 else (0,), dtype=x.dtype if i == 0 else torch.float32, device=x.device)
        for i, shape in enumerate(shapes)
    ]
    if wanted & 1 and _channels_last(x):
        grads[0] = grads[0].contiguous(memory_format=torch.channels_last)
    return tuple(grads)


@torch.library.register_fake("nft_ext::noisy_linear_backward")
def _(grad, x, weight, codes, step, table, key, stream, spec, shared, wanted):
    return _fake_gradients(x, weight, wanted)


@torch.library.register_fake("nft_ext::noisy_conv2d_backward")
def _(grad, x, weight, codes, step, table, key, stream, spec, stride, padding, dilation, groups, shared, wanted):
    return _fake_gradients(x, weight, wanted)


# ---- calls


def call(function: type[torch.autograd.Function], operator: Any, *arguments: Any) -> Tensor:
    """Calls the autograd Function if an argument needs a gradient, else the operator itself."""
    if autograd.is_special():
        return autograd.call_special(operator, *arguments)
    if torch.is_grad_enabled():
        for value in arguments[:3]:  # x, weight, bias; for `program` the weight
            if value is not None and value.requires_grad:
                return apply_function(function, *arguments)
    return without_gradient(operator, *arguments)


def call_fused(operator: Any, *arguments: Any) -> Tensor:
    """Calls an operator that has no gradient.

    Raises:
        RuntimeError: gradients are on and an argument requires one.
    """
    if torch.is_grad_enabled() and (wanting := [a for a in arguments if isinstance(a, Tensor) and a.requires_grad]):
        fail(
            "x, weight, bias, scale, shift and residual",
            "must not require a gradient, the fused operators have none: call them under torch.no_grad(), or use the "
            "plain ones",
            f"a tensor {list(wanting[0].shape)} that does",
            RuntimeError,
        )
    return without_gradient(operator, *arguments)
