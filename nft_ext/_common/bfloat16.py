"""How a CPU multiplies bfloat16: precision="bfloat16" halves an evaluation on one processor, and one image takes thirty
times as long on another.
"""

from __future__ import annotations

import enum
import platform
import warnings

import torch

PRECISIONS = ("float32", "bfloat16")


def autocast(precision: str, device: torch.device, cache: bool = True) -> torch.autocast:
    """A context: products on `device` are in `precision`, also inside another autocast.

    Args:
        cache: whether weights that were cast are kept until the outermost autocast ends.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16", cache_enabled=cache)


class Products(enum.Enum):
    """Who multiplies bfloat16 matrices and convolutions on the CPU."""

    PROCESSOR = "the processor's own products"
    FLOAT32 = "float32 products underneath"
    SLOW = "torch's loops without a library, many times slower than float32"
    UNKNOWN = "not known: this torch does not tell"


def on_cpu() -> Products:
    """What torch does on this machine's CPU: oneDNN where it takes bfloat16 (on x86 from AVX-512 on), its own loops
    elsewhere.
    """
    if not torch.backends.mkldnn.is_available():
        return Products.SLOW
    try:  # names of torch that are not public
        library, own = torch.ops.mkldnn._is_mkldnn_bf16_supported(), torch.cpu._is_avx512_bf16_supported()
    except AttributeError:
        return Products.UNKNOWN
    if not library:
        return Products.SLOW
    return Products.FLOAT32 if platform.machine() in ("x86_64", "AMD64") and not own else Products.PROCESSOR


def warn_where_slow(precision: str, device: torch.device) -> None:
    """A RuntimeWarning where `precision` is bfloat16 and `device` a CPU that is many times slower with it."""
    if precision == "bfloat16" and device.type == "cpu" and on_cpu() is Products.SLOW:
        warnings.warn(
            f"precision: bfloat16 on this CPU means {Products.SLOW.value}; float32 is the faster one",
            RuntimeWarning,
            stacklevel=3,
        )
