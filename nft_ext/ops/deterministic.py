"""The library's convolution gradients with the same bits in every call.

cuDNN sums some gradients by atomics in random order unless `cudnn.deterministic` is on. With `cudnn.benchmark` the
algorithm may differ from process to process. The kernel below sets both flags for its own call. It is an operator, so
this holds in eager mode, under torch.compile and in a CUDA graph.
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
    """Turns cudnn.deterministic on and cudnn.benchmark off inside.

    The flags belong to the process, and each torch device runs its backward in its own thread. The first thread to
    enter sets them, the last one to leave restores them.
    """
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
    """aten::convolution_backward: same arguments, same results."""
    with deterministic_cudnn():
        return torch.ops.aten.convolution_backward.default(*arguments)


# C++ calls this through the dispatcher: torch's stable ABI cannot set the flags.
torch.library.impl("nft_ext::convolution_backward", ("cpu", "cuda"), convolution_backward)


@torch.library.register_fake("nft_ext::convolution_backward")
def _(*arguments: Any) -> Any:
    return torch.ops.aten.convolution_backward.default(*arguments)
