"""bfloat16 products on the CPU: which code computes them, and a warning where they are slow.

precision="bfloat16" halves the time on one processor and multiplies it by thirty on another.
"""

from __future__ import annotations

import enum
import platform
import warnings

import torch

PRECISIONS = ("float32", "bfloat16")


def autocast(precision: str, device: torch.device, cache: bool = True) -> torch.autocast:
    """A context in which products on `device` use `precision`, also inside another autocast.

    Args:
        precision: one of `PRECISIONS`.
        device: the torch device.
        cache: keep cast weights until the outermost autocast ends.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16", cache_enabled=cache)


class Products(enum.Enum):
    """The code that computes bfloat16 products and convolutions on the CPU."""

    PROCESSOR = "the processor's own products"
    FLOAT32 = "float32 products underneath"
    SLOW = "torch's loops without a library, many times slower than float32"
    UNKNOWN = "not known: this torch does not tell"


def on_cpu() -> Products:
    """The code that torch uses on this CPU: oneDNN if it supports bfloat16 (x86: AVX-512), else torch's own loops."""
    if not torch.backends.mkldnn.is_available():
        return Products.SLOW
    try:  # private names of torch
        library, own = torch.ops.mkldnn._is_mkldnn_bf16_supported(), torch.cpu._is_avx512_bf16_supported()
    except AttributeError:
        return Products.UNKNOWN
    if not library:
        return Products.SLOW
    return Products.FLOAT32 if platform.machine() in ("x86_64", "AMD64") and not own else Products.PROCESSOR


def warn_where_slow(precision: str, device: torch.device) -> None:
    """Warns (RuntimeWarning) if `precision` is bfloat16 and `device` is a CPU that is many times slower with it."""
    if precision == "bfloat16" and device.type == "cpu" and on_cpu() is Products.SLOW:
        warnings.warn(
            f"precision: bfloat16 on this CPU uses {Products.SLOW.value}. Use float32.",
            RuntimeWarning,
            stacklevel=3,
        )
