"""Which way a product takes on CUDA: fused (weights generated in the product) or programmed first and left to the library.

The fused product generates a weight once for every tile of columns (an output position of an image, or a row of a linear layer's
input, of one chip), so it wins where a chip sees few columns. Up to how many depends on the device, the type and the direction:
`nft-ext tune` measures it and keeps the answer in a file, which later processes read at the first use of the device. Without
that file DEFAULT holds, as measured on an H100.
"""

from __future__ import annotations

import ctypes
import functools
import json
import os
import warnings
from pathlib import Path
from typing import Any

import torch

from nft_ext.ops import build_info
from nft_ext._common.checks import fail, integer
from nft_ext.version import __version__

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DIRECTIONS = ("forward", "input_gradient")
MOST = 1 << 30

Bounds = dict[str, dict[str, int]]  # [direction][dtype] -> columns a chip
# bench/results/2026-11-26-h100-octets.json and -cudnn-epilogue.json; csrc/cuda/choice.h has the same numbers.
DEFAULT: Bounds = {"forward": {"float32": 32, "bfloat16": 0, "float16": 0}, "input_gradient": dict.fromkeys(DTYPES, 0)}


def path() -> Path:
    """The file of measured bounds: NFT_EXT_TUNING, or nft_ext/fused_columns.json in the user's cache folder."""
    if named := os.environ.get("NFT_EXT_TUNING"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nft_ext" / "fused_columns.json"


def key_of(index: int) -> str:
    """What a measurement holds for: the device's kind and the versions of this package and of torch."""
    found = torch.cuda.get_device_properties(index)
    return f"{found.name}, compute capability {found.major}.{found.minor}, nft_ext {__version__}, torch {torch.__version__}"


def check(bounds: Any) -> Bounds:
    """`bounds`, once it has every direction and type with a number of columns.

    Raises:
        ValueError: something is missing or is not an integer within 0..2^30.
    """
    for direction in DIRECTIONS:
        for dtype in DTYPES:
            try:
                columns = bounds[direction][dtype]
            except (KeyError, TypeError):
                fail("bounds", f"must have an entry {direction}, {dtype}", bounds)
            integer(f"bounds, {direction}, {dtype}", columns, 0, MOST)
    return bounds


def read(key: str) -> Bounds | None:
    """The bounds measured for `key`; None where there are none. A file that cannot be used is named in a warning."""
    try:
        records = json.loads(path().read_text())
        return check(records[key]["columns"]) if key in records else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        warnings.warn(f"{path()}: must hold the result of `nft-ext tune`, and is not used ({error}); the defaults hold", RuntimeWarning,
                      stacklevel=2)
        return None


def write(key: str, bounds: Bounds, facts: dict[str, Any]) -> Path:
    """Keeps the bounds for `key` beside those of other keys; `facts` say how they were found.

    Raises:
        OSError: the file cannot be written; it names it.
    """
    target = path()
    try:
        records = json.loads(target.read_text())
    except (FileNotFoundError, ValueError):
        records = {}
    records[key] = {"columns": check(bounds), **facts}
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    part.write_text(json.dumps(records, indent=1) + "\n")
    os.replace(part, target)
    return target


def put(index: int, bounds: Bounds) -> None:
    """Makes `bounds` those of CUDA device `index` in this process."""
    setter = ctypes.CDLL(str(build_info.cuda_library)).nft_ext_set_fused_columns
    setter.argtypes, setter.restype = (ctypes.c_int32, ctypes.c_int32, ctypes.c_int32, ctypes.c_int64), None
    for d, direction in enumerate(DIRECTIONS):
        for t, dtype in enumerate(DTYPES):
            setter(index, d, t, bounds[direction][dtype])


@functools.lru_cache(maxsize=None)
def apply(index: int) -> Bounds | None:
    """Puts the measured bounds of CUDA device `index` in force, once a process; gives them, or None where the default holds."""
    found = read(key_of(index))
    if found is not None:
        put(index, found)
    return found


def described() -> str:
    """One line for `nft-ext info`: what is in force on each CUDA device, and whether it was measured."""
    if build_info.cuda_failure is not None:
        return "no CUDA in use"
    devices = []
    for index in range(torch.cuda.device_count()):
        found = apply(index)
        devices.append(f"device {index}: {_short(found or DEFAULT)} " + ("(as measured on an H100; nft-ext tune measures here)"
                                                                          if found is None else "(measured)"))
    return "; ".join(devices) or "no CUDA device"


def _short(bounds: Bounds) -> str:
    return ", ".join(f"{direction.replace('_', ' ')} up to " + "/".join(str(bounds[direction][t]) for t in DTYPES)
                     for direction in DIRECTIONS) + f" columns a chip in {'/'.join(DTYPES)}"
