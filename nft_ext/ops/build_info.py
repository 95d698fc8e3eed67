"""Loads the compiled libraries and reports how they were built (`nft-ext info`)."""

from __future__ import annotations

import os
import platform
from typing import Any

import numpy
import torch

from nft_ext._common.bfloat16 import on_cpu
from nft_ext._common.checks import fail
from nft_ext.ops import libraries
from nft_ext.version import __version__

folder = libraries.find()
cuda_library = folder / libraries.CUDA_OPERATORS
cuda_failure: str | None = None  # why _C_cuda is not loaded; the first CUDA tensor raises it


def _load() -> None:
    global cuda_failure
    if folder != libraries.HERE:
        libraries.import_core(folder)
    torch.ops.load_library(folder / libraries.OPERATORS)
    if torch.version.cuda is None:
        cuda_failure = "the installed torch has no CUDA support"
    elif not cuda_library.exists():
        from nft_ext import _core  # pyright: ignore[reportAttributeAccessIssue]  (compiled)

        cuda_failure = f"nft_ext was built without CUDA: {_core.build()['cuda_off']}"
    else:
        try:
            torch.ops.load_library(cuda_library)
        except OSError as error:
            cuda_failure = f"nft_ext's CUDA library does not load: {error}"


_load()


# Read once, at import: the CUDA library reads it when it is loaded (csrc/cuda/torch/one_pass_switch.h).
_ONE_PASS = os.environ.get("NFT_EXT_ONE_PASS", "")


def one_pass() -> str:
    """Which products on CUDA are one-pass products: NFT_EXT_ONE_PASS at import, "auto" if unset.

    Raises:
        ValueError: NFT_EXT_ONE_PASS has an unknown value.
    """
    if _ONE_PASS not in ("", "auto", "always", "never"):
        fail("NFT_EXT_ONE_PASS", "must be auto, always or never", _ONE_PASS)
    return _ONE_PASS or "auto"


def instruction_set() -> str:
    """The instruction set of the CPU kernels: NFT_EXT_CPU_ISA, or else the best that this processor can run.

    Raises:
        ValueError: NFT_EXT_CPU_ISA names none that this processor can run.
    """
    from nft_ext import _core  # pyright: ignore[reportAttributeAccessIssue]  (compiled)

    try:
        return _core.isa()
    except RuntimeError as error:
        raise ValueError(str(error)) from None


def info() -> dict[str, Any]:
    """Versions, compiler, instruction sets, threads, and CUDA architectures or the reason why CUDA is off.

    Raises:
        ValueError: NFT_EXT_ONE_PASS or NFT_EXT_CPU_ISA has an unknown value.
    """
    from nft_ext import _core  # pyright: ignore[reportAttributeAccessIssue]  (compiled)

    build = _core.build()
    return {
        "nft_ext": __version__,
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "compiler": build["compiler"],
        "instruction_sets": build["instruction_sets"],
        "instruction_set": instruction_set(),
        "threads": torch.get_num_threads(),
        "bfloat16_on_cpu": on_cpu().value,
        "cuda_built_for": build["cuda_architectures"] or None,
        "cuda_off": cuda_failure,
        "one_pass": one_pass(),
    }


def facts(*names: str) -> dict[str, str]:
    """Some entries of `info()`, as text: what files record of the machine that wrote them."""
    found = info()
    return {name: str(found[name]) for name in names}
