"""The three public functions on tensors: `program_weights` and the noisy products."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nft_ext._common.checks import boolean, fail, integer
from nft_ext.device import NVMDevice
from nft_ext.ops import autograd, derivatives, functions, operators  # noqa: F401  (registers the derivatives)
from nft_ext.ops.convolution import check_output_size, output_size
from nft_ext.ops.keys import noise_key
from nft_ext.ops.operands import (
    Epilogue,
    apply_epilogue,
    check_epilogue,
    check_key,
    check_operands,
    check_tensor,
    epilogue_of,
    padded,
    two,
)


class Crossbar(NamedTuple):
    """The arguments that describe a layer's crossbar, in the operators' order (csrc/operators/schemas.cpp)."""

    weight: Tensor  # [*], in any layout; float32, bfloat16 or float16; float64 only for a product in float64
    codes: Tensor | None  # [*], or None: the operator computes them
    step: Tensor | None  # [], [E], [E, O] or [E, O, T] as spec says, or None: the operator computes it
    table: Tensor  # [T]
    key: Tensor  # [S, 2]
    stream: int
    spec: list[int]  # [8], from NVMDevice.operator_spec


@functools.lru_cache(maxsize=256)
def device_table(nvm: NVMDevice, device: torch.device) -> Tensor:
    """The device model's table for the operators, on a torch device; cached. On meta it stays on the CPU."""
    with torch.inference_mode(False):  # training cannot use a cached inference tensor
        return torch.from_numpy(nvm.operator_table()).to("cpu" if device.type == "meta" else device)


def own_table(nvm: NVMDevice, device: torch.device) -> Tensor:
    """A copy of `device_table` for one layer, so that nothing done to it reaches another layer or model.

    One tensor per layer: torch.compile makes another graph for layers that share a tensor.
    """
    return device_table(nvm, device).clone()


@functools.lru_cache(maxsize=1024)
def device_at(nvm: NVMDevice, sigma: float) -> NVMDevice:
    """The device model at another sigma; cached, because OVF needs it in every step."""
    return nvm.replace(sigma=sigma)


def crossbar(
    weight: Tensor,
    nvm: NVMDevice,
    key: Tensor,
    stream: int,
    *,
    enabled: bool = True,
    layout: str = "oi",
    groups: int = 1,
) -> Crossbar:
    """Weight and noise as operator arguments. Checks types, torch devices, ranges and the shape.

    Raises:
        TypeError, ValueError: a bad argument.
    """
    check_tensor("weight", weight)
    boolean("enabled", enabled)
    if not isinstance(nvm, NVMDevice):
        fail("nvm", "must be an NVMDevice", type(nvm).__name__, TypeError)
    check_key(key, weight.device)
    table = device_table(nvm, weight.device)
    spec = nvm.operator_spec(enabled, layout, groups)
    check_layout(weight, layout, groups)
    return Crossbar(weight, None, None, table, key, integer("stream", stream, 0, 2**32 - 1), spec)


def _without_converters(nvm: Any) -> Any:
    """nvm, refused if it has converters."""
    if isinstance(nvm, NVMDevice) and nvm.has_converters:
        rule = "must have no input_bits and output_bits: only layers have the ranges of converters. Use NoisyLinear or "
        fail("nvm", rule + "NoisyConv2d", str(nvm))
    return nvm


def check_layout(weight: Tensor, layout: str, groups: int) -> None:
    """Checks that a weight has the dimensions that its layout names.

    Raises:
        ValueError: it has not.
    """
    if layout == "oi":
        return
    if weight.dim() < len(layout):
        fail("weight", f'must have {len(layout)} dimensions or more for layout "{layout}"', list(weight.shape))
    if weight.shape[0] % groups:
        fail("groups", f"must divide dimension 0 of the weight, {weight.shape[0]}", groups)


def for_kernels(bar: Crossbar) -> Crossbar:
    """The crossbar as the compiled kernels take it: a float64 weight in float32."""
    return bar._replace(weight=bar.weight.float()) if bar.weight.dtype == torch.float64 else bar


def program_weights(
    weight: Tensor,
    nvm: NVMDevice,
    *,
    seed: int = 0,
    stream: int = 0,
    draws: int | Iterable[int] = 0,
    key: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    enabled: bool = True,
    layout: str = "oi",
    groups: int = 1,
) -> Tensor:
    """Programmed weights W_p, one copy per chip (Eq. 4 and 5 of arXiv 2305.14561).

    **Give every weight a stream of its own.** Two calls with the same key and stream share their noise.

    Args:
        weight: [*]. Weights of another type than float32 get the noise of their float32 values.
        nvm: the device model.
        seed, draws: the chips, see `noise_key`.
        stream: the 32-bit number of the weight in the random counters.
        key: int64 [S, 2], in place of seed and draws.
        dtype: float32 or bfloat16, on CUDA also float16. 16-bit results are rounded to nearest even.
        enabled: False gives the quantized weight W_d.
        layout: how the weight is stored: "oi" (Linear, Conv), "io" (transformers' Conv1D, transposed convolutions),
            "eoi" or "eio" (experts). It decides which weights share a step, see `NVMDevice.operator_scaling`.
        groups: of a transposed convolution, with layout "io".

    Returns:
        [S, *weight.shape]. The gradient is straight-through: dL/dW is the sum of dL/dW_p over chips.

    Raises:
        TypeError, ValueError: a bad argument.
        RuntimeError: weights that are not finite.
    """
    check_tensor("weight", weight)
    if key is not None and not (isinstance(draws, int) and seed == draws == 0):
        fail("key", "must be given without seed and draws, which it replaces", f"seed {seed}, draws {draws}")
    key = noise_key(seed, draws, device=weight.device) if key is None else key
    if dtype not in (torch.float32, torch.bfloat16) and not (dtype == torch.float16 and weight.device.type == "cuda"):
        fail("dtype", "must be torch.float32 or torch.bfloat16 (or float16 on CUDA)", str(dtype))
    bar = for_kernels(crossbar(weight, nvm, key, stream, enabled=enabled, layout=layout, groups=groups))
    return operators.call(functions.Program, operators.ops.program.default, *bar, dtype)


def noisy_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    nvm: NVMDevice,
    key: Tensor,
    stream: int = 0,
    shared: bool = True,
    enabled: bool = True,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    residual: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """x W_p^T + bias for every chip of the key.

    **Give every weight a stream of its own.** Two calls with the same key and stream share their noise.

    With scale, shift, residual or relu, one operator also applies the epilogue, for inference only:
    relu((x W_p^T + bias) * scale + shift + residual).

    Args:
        x: [B, ..., in]; with shared=False [S * B, ..., in], chip-major.
        weight: [out, in].
        bias: [out], digital (no noise).
        nvm: the device model.
        key: int64 [S, 2] on x's torch device, one row per chip.
        stream: the 32-bit number of the weight in the random counters.
        shared: whether all chips see the same x.
        enabled: False multiplies with the quantized weight W_d.
        scale, shift: [out] float32, batch-norm in eval mode.
        residual: shape and dtype of the result.
        relu: whether the epilogue ends with ReLU. The epilogue is computed in float32. A one-pass product rounds the
            result once; a library product is rounded before the epilogue too.

    Returns:
        [S * B, ..., out], chip-major, in x's dtype (or autocast's). With S = 1, x may be [in]; the result is [out].
        In float64 torch computes the product, on the noise of the float32 weight.

    Raises:
        TypeError, ValueError: a bad argument.
        RuntimeError: weights that are not finite; or an epilogue, and a tensor that requires a gradient.
    """
    bar = crossbar(weight, _without_converters(nvm), key, stream, enabled=enabled)
    return linear_product(x, bias, bar, boolean("shared", shared), epilogue_of(scale, shift, residual, relu))


def linear_product(
    x: Tensor, bias: Tensor | None, bar: Crossbar, shared: bool, epilogue: Epilogue | None = None
) -> Tensor:
    """`noisy_linear` on a prepared crossbar."""
    chips = bar.key.shape[0]
    if bar.weight.dim() != 2:
        fail("weight", "must have the shape [out, in]", list(bar.weight.shape))
    x = check_operands(x, bar.weight, bias, chips, shared)
    if x.dim() == 0 or x.shape[-1] != bar.weight.shape[1]:
        fail("x", f"must have the shape [..., in] with in = {bar.weight.shape[1]}", list(x.shape))
    if x.dim() == 1 and chips > 1:
        fail("x", f"must have a batch dimension for {chips} chips", list(x.shape))
    rows = x.reshape(-1, x.shape[-1]) if x.dim() != 2 else x
    lead = list(x.shape[:-1])
    if lead and shared:
        lead[0] *= chips
    operator = operators.ops.noisy_linear.default
    if epilogue is not None:
        check_epilogue(epilogue, x, bar.weight, [*lead, bar.weight.shape[0]])
        if epilogue.residual is not None:
            epilogue = epilogue._replace(residual=epilogue.residual.reshape(-1, bar.weight.shape[0]))
    if x.dtype == torch.float64:
        y = autograd.call_composed(operator, rows, bar.weight, bias, *bar[1:], shared)
        y = y if epilogue is None else apply_epilogue(y, epilogue)
        return y if x.dim() == 2 else y.reshape(*lead, y.shape[-1])
    bar = for_kernels(bar)
    if epilogue is None:
        y = operators.call(functions.NoisyLinear, operator, rows, bar.weight, bias, *bar[1:], shared)
    else:
        y = operators.call_fused(
            operators.ops.noisy_linear_fused.default, rows, bar.weight, bias, *bar[1:], shared, *epilogue
        )
    return y if x.dim() == 2 else y.reshape(*lead, y.shape[-1])


def noisy_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    *,
    nvm: NVMDevice,
    key: Tensor,
    stream: int = 0,
    shared: bool = True,
    enabled: bool = True,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    residual: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """conv2d(x, W_p, bias) for every chip of the key.

    **Give every weight a stream of its own.** Two calls with the same key and stream share their noise.

    With scale, shift, residual or relu, one operator also applies the epilogue, for inference only:
    relu(conv2d(x, W_p, bias) * scale + shift + residual).

    Args:
        x: [B, C, H, W]; with shared=False [S * B, C, H, W], chip-major.
        weight: [out, C / groups, kh, kw].
        bias: [out], digital (no noise).
        stride, padding, dilation, groups: as in torch.nn.functional.conv2d. Padding may be "same" (stride 1) or
            "valid".
        nvm: the device model.
        key: int64 [S, 2] on x's torch device, one row per chip.
        stream: the 32-bit number of the weight in the random counters.
        shared: whether all chips see the same x.
        enabled: False convolves with the quantized weight W_d.
        scale, shift, residual, relu: the epilogue, as in `noisy_linear`.

    Returns:
        [S * B, out, oh, ow], chip-major, in x's dtype (or autocast's) and memory format. float64: as `noisy_linear`.

    Raises:
        TypeError, ValueError: a bad argument.
        RuntimeError: as `noisy_linear`.
    """
    bar = crossbar(weight, _without_converters(nvm), key, stream, enabled=enabled)
    epilogue = epilogue_of(scale, shift, residual, relu)
    return conv2d_product(x, bias, bar, stride, padding, dilation, groups, boolean("shared", shared), epilogue)


def conv2d_product(
    x: Tensor,
    bias: Tensor | None,
    bar: Crossbar,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    shared: bool,
    epilogue: Epilogue | None = None,
) -> Tensor:
    """`noisy_conv2d` on a prepared crossbar."""
    chips = bar.key.shape[0]
    x, geometry, shape = conv2d_operands(x, bias, bar.weight, chips, stride, padding, dilation, groups, shared)
    if epilogue is not None:
        check_epilogue(epilogue, x, bar.weight, shape)
    operator = operators.ops.noisy_conv2d.default
    if x.dtype == torch.float64:
        y = autograd.call_composed(operator, x, bar.weight, bias, *bar[1:], *geometry, shared)
        return y if epilogue is None else apply_epilogue(y, epilogue)
    bar = for_kernels(bar)
    if _split_for_compiler(x, bar):
        w_p = operators.ops.program.default(*bar, x.dtype)[0]
        y = torch.nn.functional.conv2d(x, w_p, bias if bias is None else bias.to(x.dtype), *geometry)
        return y if epilogue is None else apply_epilogue(y, epilogue)
    arguments = (x, bar.weight, bias, *bar[1:], *geometry, shared)
    if epilogue is not None:
        return operators.call_fused(operators.ops.noisy_conv2d_fused.default, *arguments, *epilogue)
    return operators.call(functions.NoisyConv2d, operator, *arguments)


def conv2d_operands(
    x: Tensor,
    bias: Tensor | None,
    weight: Tensor,
    chips: int,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    shared: bool,
) -> tuple[Tensor, tuple[list[int], list[int], list[int], int], list[int]]:
    """(x, (stride, padding, dilation, groups), result shape) as the operator takes them; checked."""
    if weight.dim() != 4:
        fail("weight", "must have the shape [out, C / groups, kh, kw]", list(weight.shape))
    if not weight.numel():
        fail("weight", "must have no dimension of size 0", list(weight.shape))
    groups = integer("groups", groups, 1)
    if weight.shape[0] % groups:
        fail("groups", f"must divide the {weight.shape[0]} output channels", groups)
    x = check_operands(x, weight, bias, chips, shared)
    if x.dim() != 4 or x.shape[1] != weight.shape[1] * groups:
        fail("x", f"must have the shape [B, {weight.shape[1] * groups}, H, W]", list(x.shape))
    stride, dilation = two("stride", stride, 1), two("dilation", dilation, 1)
    x, padding = padded(x, padding, weight.shape[2:], stride, dilation)
    size = output_size(x.shape[2:], weight.shape[2:], stride, padding, dilation)
    check_output_size(x.shape[2:], weight.shape[2:], padding, dilation, size)
    rows = x.shape[0] * (chips if shared else 1)
    return x, (stride, padding, dilation, groups), [rows, weight.shape[0], *size]


_MANY = 1 << 17  # elements of x; csrc/cpu/torch/one_pass.h switches to library products at about the same number


def _split_for_compiler(x: Tensor, bar: Crossbar) -> bool:
    """Whether a compiled graph gets separate operators for programming and convolution.

    For many images the compiler gains more by choosing layouts and merging elementwise operations than one operator
    does. One chip, no gradient.
    """
    return torch.compiler.is_compiling() and not torch.is_grad_enabled() and bar.key.shape[0] == 1 and x.numel() > _MANY
