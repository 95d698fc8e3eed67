"""The three public calls on tensors: program a crossbar, and the noisy products."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import build_info, choice, operators
from .checks import fail, integer
from .device import NVMDevice
from .keys import noise_key


class Crossbar(NamedTuple):
    """What the operators need of one layer besides x: see csrc/ops.cpp."""

    weight: Tensor          # [*] float32
    codes: Tensor | None    # [*] or None
    step: Tensor | None     # [], or None: the operator finds it
    table: Tensor           # [T]
    key: Tensor             # [S, 2]
    stream: int
    spec: list[int]         # [4]


@functools.lru_cache(maxsize=256)
def device_table(nvm: NVMDevice, device: torch.device) -> Tensor:
    """The operators' table of a device model, on `device` (the CPU for meta, where it would lose its values); made once."""
    if device.type == "cuda":
        choice.apply(torch.cuda.current_device() if device.index is None else device.index)  # the first use of a device comes by here
    with torch.inference_mode(False):  # an inference tensor kept here could not serve training later
        return torch.from_numpy(nvm.operator_table()).to("cpu" if device.type == "meta" else device)


@functools.lru_cache(maxsize=1024)
def device_at(nvm: NVMDevice, sigma: float) -> NVMDevice:
    """The device model at another sigma; made once, since OVF asks for it at every step."""
    return nvm.replace(sigma=sigma)


def crossbar(weight: Tensor, nvm: NVMDevice, key: Tensor, stream: int, *, enabled: bool = True) -> Crossbar:
    """Weight and noise as operator arguments. Checks types, devices and ranges.

    Raises:
        TypeError, ValueError: the argument, the rule and the value; weights that are not finite.
    """
    check_tensor("weight", weight)
    if not isinstance(nvm, NVMDevice):
        fail("nvm", "must be an NVMDevice", type(nvm).__name__, TypeError)
    check_key(key, weight.device)
    weight = weight if weight.dtype == torch.float32 else weight.float()
    table = device_table(nvm, weight.device)
    return Crossbar(weight, None, None, table, key, integer("stream", stream, 0, 2**32 - 1), nvm.operator_spec(enabled))


_PLAIN = (Tensor, torch.nn.Parameter)


def check_tensor(argument: str, value: Any) -> None:
    """A floating tensor the operators serve, on a device that this build serves."""
    if type(value) in _PLAIN and value.dtype is torch.float32 and value.is_cpu and value.layout is torch.strided and not value.is_nested:
        return  # the common case, on the path of every forward
    if not isinstance(value, Tensor):
        fail(argument, "must be a torch.Tensor", type(value).__name__, TypeError)
    if value.layout != torch.strided or value.is_nested:
        fail(argument, "must be a dense tensor", "a nested tensor" if value.is_nested else str(value.layout), TypeError)
    if value.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        fail(argument, "must be float32, bfloat16 or float16 (float64: see nft_ext.reference)", str(value.dtype), TypeError)
    if value.device.type == "cuda" and build_info.cuda_failure is not None:
        fail(argument, f"must be a CPU tensor, because {build_info.cuda_failure}", str(value.device), RuntimeError)
    if value.device.type not in ("cpu", "cuda", "meta"):
        fail(argument, "must be on the CPU or on CUDA", str(value.device))


def check_key(key: Any, device: torch.device) -> None:
    if not isinstance(key, Tensor) or key.dtype != torch.int64:
        fail("key", "must be an int64 tensor [S, 2], see nft_ext.noise_key", str(getattr(key, "dtype", type(key).__name__)), TypeError)
    if key.dim() != 2 or key.shape[1] != 2 or key.shape[0] == 0:
        fail("key", "must have the shape [S, 2] with S >= 1", list(key.shape))
    if key.device != device:
        fail("key", f"must be on the weight's device {device}", str(key.device))


def _check_operands(x: Any, weight: Tensor, bias: Tensor | None, chips: int, shared: bool) -> Tensor:
    """x, in autocast's dtype where that is on, once it fits the weight, the bias and the chips."""
    check_tensor("x", x)
    x = _autocast(x)
    if x.device != weight.device:
        fail("x", f"must be on the weight's device {weight.device}", str(x.device))
    if x.dtype == torch.float16 and x.device.type == "cpu":
        fail("x", "must be float32 or bfloat16 on the CPU", str(x.dtype), TypeError)
    if bias is not None:
        check_tensor("bias", bias)
        if bias.shape != weight.shape[:1]:
            fail("bias", f"must have the shape [{weight.shape[0]}]", list(bias.shape))
        if bias.device != weight.device:
            fail("bias", f"must be on the weight's device {weight.device}", str(bias.device))
    if not shared and x.dim() > 1 and x.shape[0] % chips:
        fail("x", f"dim 0 must be a multiple of the {chips} chips of the key (chip-major)", x.shape[0])
    return x


def _autocast(x: Tensor) -> Tensor:
    """x in the dtype that autocast asks for; weights and tables stay float32, the kernel rounds W_p to x's dtype."""
    kind = x.device.type
    if kind != "meta" and torch.is_autocast_enabled(kind) and x.is_floating_point():
        return x.to(torch.get_autocast_dtype(kind))
    return x


def program_weights(weight: Tensor, nvm: NVMDevice, seed: int = 0, stream: int = 0, draws: int | Iterable[int] = 0, *,
                    key: Tensor | None = None, dtype: torch.dtype = torch.float32, enabled: bool = True) -> Tensor:
    """Weights as they sit on programmed chips (Eq. 4 and 5).

    Args:
        weight: [*], float32 (other floating types are converted).
        nvm: the device model.
        seed, draws: which chips, see `noise_key`; or give `key` [S, 2] itself.
        stream: the layer's 32-bit stream.
        dtype: float32, or bfloat16 rounded to nearest even.
        enabled: False gives the quantized weight W_d.

    Returns:
        [S, *weight.shape]. Differentiable: dL/dW is the sum over chips (straight-through).

    Raises:
        TypeError, ValueError: bad arguments. RuntimeError: weights that are not finite.
    """
    check_tensor("weight", weight)
    key = noise_key(seed, draws, device=weight.device) if key is None else key
    if dtype not in (torch.float32, torch.bfloat16) and not (dtype == torch.float16 and weight.device.type == "cuda"):
        fail("dtype", "must be torch.float32 or torch.bfloat16 (or float16 on CUDA)", str(dtype))
    return operators.call(operators.Program, operators.ops.program, *crossbar(weight, nvm, key, stream, enabled=enabled), dtype)


def noisy_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, nvm: NVMDevice, key: Tensor, stream: int = 0,
                 shared: bool = True, enabled: bool = True) -> Tensor:
    """x W_p^T + bias for every chip of the key.

    Args:
        x: [B, ..., in]; or with shared=False [S * B, ..., in], chip-major.
        weight: [out, in]. bias: [out], digital (no noise).
        key: int64 [S, 2] on x's device, one row a chip.
        stream: the layer's 32-bit stream.
        shared: whether all chips see the same x.
        enabled: False multiplies with the quantized weight W_d.

    Returns:
        [S * B, ..., out], chip-major, in x's dtype (autocast's, where that is on). For 1-D x [in]: [out], S = 1 only.

    Raises:
        TypeError, ValueError: bad arguments. RuntimeError: weights that are not finite.
    """
    bar = crossbar(weight, nvm, key, stream, enabled=enabled)
    return linear_product(x, bias, bar, shared)


def linear_product(x: Tensor, bias: Tensor | None, bar: Crossbar, shared: bool) -> Tensor:
    """`noisy_linear` on prepared operator arguments."""
    chips = bar.key.shape[0]
    if bar.weight.dim() != 2:
        fail("weight", "must have the shape [out, in]", list(bar.weight.shape))
    x = _check_operands(x, bar.weight, bias, chips, shared)
    if x.dim() == 0 or x.shape[-1] != bar.weight.shape[1]:
        fail("x", f"must have the shape [..., in] with in = {bar.weight.shape[1]}", list(x.shape))
    if x.dim() == 1 and chips > 1:
        fail("x", f"must have a batch dimension for {chips} chips", list(x.shape))
    rows = x.reshape(-1, x.shape[-1]) if x.dim() != 2 else x
    y = operators.call(operators.NoisyLinear, operators.ops.noisy_linear, rows, bar.weight, bias, *bar[1:], shared)
    if x.dim() == 2:
        return y
    lead = list(x.shape[:-1])
    if lead and shared:
        lead[0] *= chips
    return y.reshape(*lead, y.shape[-1])


def noisy_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int | tuple[int, int] = 1,
                 padding: int | tuple[int, int] | str = 0, dilation: int | tuple[int, int] = 1, groups: int = 1, *,
                 nvm: NVMDevice, key: Tensor, stream: int = 0, shared: bool = True, enabled: bool = True) -> Tensor:
    """conv2d(x, W_p, bias) for every chip of the key; the other arguments are those of torch.nn.functional.conv2d.

    Args:
        x: [B, C, H, W]; or with shared=False [S * B, C, H, W], chip-major.
        weight: [out, C / groups, kh, kw]. bias: [out], digital (no noise).
        stride, padding, dilation, groups: as in torch; padding also "same" (stride 1) or "valid".
        key: int64 [S, 2] on x's device, one row a chip.
        stream: the layer's 32-bit stream.
        shared: whether all chips see the same x.
        enabled: False convolves with the quantized weight W_d.

    Returns:
        [S * B, out, oh, ow], chip-major, in x's dtype (autocast's, where that is on) and memory format.

    Raises:
        TypeError, ValueError: bad arguments. RuntimeError: weights that are not finite.
    """
    bar = crossbar(weight, nvm, key, stream, enabled=enabled)
    return conv2d_product(x, bias, bar, stride, padding, dilation, groups, shared)


def conv2d_product(x: Tensor, bias: Tensor | None, bar: Crossbar, stride: Any, padding: Any, dilation: Any, groups: int,
                   shared: bool) -> Tensor:
    """`noisy_conv2d` on prepared operator arguments."""
    weight = bar.weight
    if weight.dim() != 4:
        fail("weight", "must have the shape [out, C / groups, kh, kw]", list(weight.shape))
    groups = integer("groups", groups, 1)
    if weight.shape[0] % groups:
        fail("groups", f"must divide the {weight.shape[0]} output channels", groups)
    x = _check_operands(x, weight, bias, bar.key.shape[0], shared)
    if x.dim() != 4 or x.shape[1] != weight.shape[1] * groups:
        fail("x", f"must have the shape [B, {weight.shape[1] * groups}, H, W]", list(x.shape))
    stride, dilation = _two("stride", stride, 1), _two("dilation", dilation, 1)
    x, padding = _pad(x, padding, weight.shape[2:], stride, dilation)
    for i in (0, 1):
        reach = dilation[i] * (weight.shape[2 + i] - 1) + 1
        if x.shape[2 + i] + 2 * padding[i] < reach:
            fail("x", f"padded {('height', 'width')[i]} must be at least the kernel's {reach}", x.shape[2 + i] + 2 * padding[i])
    if _in_pieces(x, bar):
        w_p = operators.ops.program(*bar, x.dtype)[0]
        return torch.nn.functional.conv2d(x, w_p, bias if bias is None else bias.to(x.dtype), stride, padding, dilation, groups)
    return operators.call(operators.NoisyConv2d, operators.ops.noisy_conv2d, x, weight, bias, *bar[1:], stride, padding, dilation,
                          groups, shared)


_MANY = 1 << 17  # elements of x: beyond about as many, csrc/cpu/fused.h leaves the product to the library too


def _in_pieces(x: Tensor, bar: Crossbar) -> bool:
    """Whether a compiled graph shall see the programmed weight and torch's own convolution: with many images the compiler gains
    more from choosing layouts and fusing what follows than the operator does. One chip, no gradient."""
    return torch.compiler.is_compiling() and not torch.is_grad_enabled() and bar.key.shape[0] == 1 and x.numel() > _MANY


def _two(argument: str, value: Any, low: int) -> list[int]:
    if type(value) is tuple and len(value) == 2 and type(value[0]) is type(value[1]) is int and value[0] >= low <= value[1]:
        return list(value)  # the common case, on the path of every forward
    if not isinstance(value, (int, tuple, list)):
        fail(argument, "must be one or two integers", value)
    values = [value, value] if isinstance(value, int) else list(value)
    if len(values) == 1:
        values *= 2
    if len(values) != 2:
        fail(argument, "must be one or two integers", value)
    return [integer(argument, v, low) for v in values]


def _pad(x: Tensor, padding: Any, kernel: Any, stride: list[int], dilation: list[int]) -> tuple[Tensor, list[int]]:
    """(x, symmetric padding); an odd total of "same" puts the extra zero at the end, as torch does."""
    if not isinstance(padding, str):
        return x, _two("padding", padding, 0)
    if padding == "valid":
        return x, [0, 0]
    if padding != "same":
        fail("padding", 'must be integers, "same" or "valid"', padding)
    if stride != [1, 1]:
        fail("padding", 'must not be "same" with a stride other than 1', stride)
    total = [d * (k - 1) for d, k in zip(dilation, kernel)]
    odd = [t % 2 for t in total]
    if any(odd):
        x = torch.nn.functional.pad(x, (0, odd[1], 0, odd[0]))
    return x, [t // 2 for t in total]
