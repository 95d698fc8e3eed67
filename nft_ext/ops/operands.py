"""Checks of the other arguments of products: operands, geometry, epilogue."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from nft_ext._common.checks import fail, integer
from nft_ext.ops import build_info
from nft_ext.ops.convolution import MOST


class Epilogue(NamedTuple):
    """The epilogue of a product, for inference: relu((W_p x + bias) * scale + shift + residual)."""

    scale: Tensor | None = None  # [out] float32
    shift: Tensor | None = None  # [out] float32
    residual: Tensor | None = None  # the result's shape and dtype
    relu: bool = False


_PLAIN = (Tensor, torch.nn.Parameter)


def is_ordinary(value: Any) -> bool:
    """Whether `value` is a dense float32 tensor on the CPU: the common case, tested in every forward."""
    return (
        type(value) in _PLAIN
        and value.dtype is torch.float32
        and value.is_cpu
        and value.layout is torch.strided
        and not value.is_nested
    )


def is_dense_on_cpu(value: Any) -> bool:
    """Whether the CPU operators accept `value` unchanged as x, residual or weight."""
    return is_ordinary(value) or (
        type(value) in _PLAIN
        and value.dtype is torch.bfloat16
        and value.is_cpu
        and value.layout is torch.strided
        and not value.is_nested
    )


def check_tensor(argument: str, value: Any) -> None:
    """Checks that the operators and this build support the tensor's type, layout and torch device."""
    if is_ordinary(value):
        return
    if not isinstance(value, Tensor):
        fail(argument, "must be a torch.Tensor", type(value).__name__, TypeError)
    if _is_sharded(value):
        fail(argument, "must be a whole tensor: gather it first, as FSDP does in its forward", "a DTensor", TypeError)
    if value.layout != torch.strided or value.is_nested:
        fail(argument, "must be a dense tensor", "a nested tensor" if value.is_nested else str(value.layout), TypeError)
    if value.dtype not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        fail(argument, "must be float32, bfloat16, float16 or float64", str(value.dtype), TypeError)
    if value.device.type == "cuda" and build_info.cuda_failure is not None:
        fail(argument, f"must be a CPU tensor, because {build_info.cuda_failure}", str(value.device), RuntimeError)
    if value.device.type not in ("cpu", "cuda", "meta"):
        fail(argument, "must be on the CPU or on CUDA", str(value.device))


def local_part(tensor: Tensor) -> Tensor:
    """The rank's own part of a DTensor, such as a parameter that FSDP2 shards; any other tensor as it is."""
    return cast(Any, tensor).to_local() if _is_sharded(tensor) else tensor


def _is_sharded(value: Any) -> bool:
    # A DTensor exists only if this module has been imported, which takes long.
    sharded = sys.modules.get("torch.distributed.tensor")
    return sharded is not None and isinstance(value, sharded.DTensor)


def check_key(key: Any, device: torch.device) -> None:
    """Checks type, shape and torch device of a key."""
    if not isinstance(key, Tensor) or key.dtype != torch.int64:
        fail(
            "key",
            "must be an int64 tensor [S, 2], see nft_ext.noise_key",
            str(getattr(key, "dtype", type(key).__name__)),
            TypeError,
        )
    if key.dim() != 2 or key.shape[1] != 2 or key.shape[0] == 0:
        fail("key", "must have the shape [S, 2] with S >= 1", list(key.shape))
    if key.device != device:
        fail("key", f"must be on the weight's torch device {device}", str(key.device))


def check_operands(x: Any, weight: Tensor, bias: Tensor | None, chips: int, shared: bool) -> Tensor:
    """x in autocast's dtype, checked against the weight, the bias and the number of chips."""
    check_tensor("x", x)
    x = in_autocast(x)
    if x.device != weight.device:
        fail("x", f"must be on the weight's torch device {weight.device}", str(x.device))
    if x.dtype == torch.float16 and x.device.type == "cpu":
        fail("x", "must be float32 or bfloat16 on the CPU", str(x.dtype), TypeError)
    if bias is not None:
        check_tensor("bias", bias)
        if bias.shape != weight.shape[:1]:
            fail("bias", f"must have the shape [{weight.shape[0]}]", list(bias.shape))
        if bias.device != weight.device:
            fail("bias", f"must be on the weight's torch device {weight.device}", str(bias.device))
    if not shared and x.dim() > 1 and x.shape[0] % chips:
        fail("x", f"dim 0 must be a multiple of the {chips} chips of the key (chip-major)", x.shape[0])
    return x


def check_epilogue(e: Epilogue, x: Tensor, weight: Tensor, shape: list[int]) -> None:
    """Checks scale, shift and residual against the weight, x (in autocast's dtype) and the result's shape."""
    for argument, value in (("scale", e.scale), ("shift", e.shift)):
        if value is None:
            continue
        check_tensor(argument, value)
        if value.dtype != torch.float32:
            fail(argument, "must be float32", str(value.dtype), TypeError)
        if value.shape != weight.shape[:1]:
            fail(argument, f"must have the shape [{weight.shape[0]}]", list(value.shape))
        if value.device != weight.device:
            fail(argument, f"must be on the weight's torch device {weight.device}", str(value.device))
    if e.residual is not None:
        check_tensor("residual", e.residual)
        if e.residual.dtype != x.dtype:
            fail("residual", f"must have the result's dtype {x.dtype}", str(e.residual.dtype), TypeError)
        if list(e.residual.shape) != shape:
            fail("residual", f"must have the result's shape {shape}", list(e.residual.shape))
        if e.residual.device != weight.device:
            fail("residual", f"must be on the weight's torch device {weight.device}", str(e.residual.device))


def apply_epilogue(y: Tensor, e: Epilogue) -> Tensor:
    """The epilogue in torch operations. In a compiled graph the compiler makes them one loop."""
    row = [1, -1, *[1] * (y.dim() - 2)]
    z = y if y.dtype == torch.float64 else y.float()
    if e.scale is not None:
        z = z * e.scale.view(row)
    if e.shift is not None:
        z = z + e.shift.view(row)
    if e.residual is not None:
        z = z + e.residual.to(z.dtype)
    return (z.relu() if e.relu else z).to(y.dtype)


def in_autocast(x: Tensor) -> Tensor:
    """x in autocast's dtype. Weights and tables stay float32; the kernel rounds W_p to x's dtype.

    As in torch, float64 stays float64.
    """
    dtype = dtype_in_autocast(x)
    return x if x.dtype == dtype else x.to(dtype)


def dtype_in_autocast(x: Tensor) -> torch.dtype:
    """The dtype of `in_autocast(x)`."""
    dtype = autocast_dtype(x.device)
    return x.dtype if dtype is None or not x.is_floating_point() or x.dtype == torch.float64 else dtype


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """Autocast's dtype on the torch device; None if autocast is off or on meta."""
    kind = device.type
    return torch.get_autocast_dtype(kind) if kind != "meta" and torch.is_autocast_enabled(kind) else None


def two(argument: str, value: Any, low: int) -> list[int]:
    """One or two integers in [low, MOST], as two."""
    if (
        type(value) is tuple
        and len(value) == 2
        and type(value[0]) is type(value[1]) is int
        and MOST >= value[0] >= low <= value[1] <= MOST
    ):
        return list(value)  # the common case: every forward comes here
    if not isinstance(value, (int, tuple, list)):
        fail(argument, "must be one or two integers", value)
    values = [value, value] if isinstance(value, int) else list(value)
    if len(values) == 1:
        values *= 2
    if len(values) != 2:
        fail(argument, "must be one or two integers", value)
    return [integer(argument, v, low, MOST) for v in values]


def padded(x: Tensor, padding: Any, kernel: Any, stride: list[int], dilation: list[int]) -> tuple[Tensor, list[int]]:
    """(x, symmetric padding). An odd total of "same" adds the extra zero at the end, as torch does."""
    if not isinstance(padding, str):
        return x, two("padding", padding, 0)
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


def epilogue_of(scale: Any, shift: Any, residual: Any, relu: Any) -> Epilogue | None:
    """The epilogue, or None if it is empty: then the plain operators run, with gradients."""
    if not isinstance(relu, bool):
        fail("relu", "must be True or False", relu, TypeError)
    return Epilogue(scale, shift, residual, relu) if relu or not scale is shift is residual is None else None
