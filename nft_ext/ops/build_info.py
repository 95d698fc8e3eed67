"""Which libraries were built and loaded, and what they use (`nft-ext info`)."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import numpy
import torch

from nft_ext._common.bfloat16 import on_cpu
from nft_ext.version import __version__

_HERE = Path(__file__).parents[1]  # nft_ext/, where the build puts the libraries
cuda_library = _HERE / "_C_cuda.so"
cuda_failure: str | None = None  # why _C_cuda is not loaded; raised at the first use of a CUDA tensor


def _load() -> None:
    global cuda_failure
    library = _HERE / "_C.so"
    if not library.exists():
        raise ImportError(
            "nft_ext: the compiled extension is missing beside the package; build it with: pip install --no-build-isolation .")
    torch.ops.load_library(library)
    if torch.version.cuda is None:
        cuda_failure = "the installed torch has no CUDA support"
    elif not cuda_library.exists():
        from nft_ext import _core

        cuda_failure = f"nft_ext was built without CUDA: {_core.build()['cuda_off']}"
    else:
        try:
            torch.ops.load_library(cuda_library)
        except OSError as error:
            cuda_failure = f"nft_ext's CUDA library does not load: {error}"


_load()


def info() -> dict[str, Any]:
    """Versions, compiler, instruction sets, threads, and CUDA architectures or why CUDA is off."""
    from nft_ext import _core

    build = _core.build()
    return {
        "nft_ext": __version__,
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "compiler": build["compiler"],
        "instruction_sets": build["instruction_sets"],
        "instruction_set": _core.isa(),
        "threads": torch.get_num_threads(),
        "bfloat16_on_cpu": on_cpu().value,
        "cuda_built_for": build["cuda_architectures"] or None,
        "cuda_off": cuda_failure,
    }
