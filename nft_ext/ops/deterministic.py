"""The library's convolution gradients with the same bits every time, whatever torch is told elsewhere.

cuDNN sums some gradients by atomics, in whatever order they come, unless torch's flag `cudnn.deterministic` keeps it
from them; with `cudnn.benchmark` it takes what was fastest at the first call, which is not the same in every process.
The kernel below sets both for its own call. It runs where the operators' backward runs, so that holds in eager mode,
under torch.compile and while a CUDA graph is captured alike.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import torch

from nft_ext.ops import build_info  # noqa: F401  (loads the libraries)

_lock = threading.Lock()
_inside, _before = 0, (False, False)


@contextlib.contextmanager
def deterministic_cudnn() -> Iterator[None]:
    """Inside, in all threads: cudnn.deterministic is on and cudnn.benchmark off. The flags are the process's, and every
    device has a thread for its backward: the first one in sets them, the last one out gives back what that found."""
    global _inside, _before
    with _lock:
        if _inside == 0:
            _before = torch._C._get_cudnn_deterministic(), torch._C._get_cudnn_benchmark()
            torch._C._set_cudnn_deterministic(True)
            torch._C._set_cudnn_benchmark(False)
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                torch._C._set_cudnn_deterministic(_before[0])
                torch._C._set_cudnn_benchmark(_before[1])


def convolution_backward(*arguments: Any) -> Any:
    """aten::convolution_backward with its arguments and results."""
    with deterministic_cudnn():
        return torch.ops.aten.convolution_backward.default(*arguments)


# Kernels of C++ reach it through the dispatcher (csrc/cuda/ops_cuda.cpp): torch's stable ABI has no such flag.
torch.library.impl("nft_ext::convolution_backward", ("cpu", "cuda"), convolution_backward)


@torch.library.register_fake("nft_ext::convolution_backward")
def _(*arguments: Any) -> Any:
    return torch.ops.aten.convolution_backward.default(*arguments)
