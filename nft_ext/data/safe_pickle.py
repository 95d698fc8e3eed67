"""Reading a data set's pickle without running it: an unpickler that admits nothing but arrays, lists, dicts and bytes.

A pickle is a program: it names callables and calls them. Here it may name only what NumPy's arrays of bytes are written
with, and each of those names leads to a stand-in of this file, which records what it is given. So neither NumPy nor
anything else runs on the file's behalf; `PickledArray.bytes` then checks the record and makes the array.
"""

from __future__ import annotations

import io
import math
import pickle
from typing import Any

import numpy as np


class Refused(ValueError):
    """The pickle asks for something that is not an array, list, dict or bytes."""


class PickledArray:
    """Stands in for an array while it is read: the arguments its pickle gives, unchecked."""

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def bytes(self) -> np.ndarray:
        """The array, uint8, read-only.

        Raises:
            Refused: it is no whole array of unsigned bytes in C order.
        """
        state = getattr(self, "state", None)
        if not (isinstance(state, tuple) and len(state) == 5):
            raise Refused("an array without its contents")
        _, shape, dtype, fortran, data = state
        if not (isinstance(dtype, _Dtype) and dtype.name in ("u1", b"u1", "uint8", b"uint8")) or fortran:
            raise Refused("an array that is not of unsigned bytes in C order")
        whole = isinstance(shape, tuple) and all(type(n) is int and n >= 0 for n in shape)
        if not whole or type(data) is not bytes or len(data) != math.prod(shape):
            raise Refused("an array whose contents do not fill its shape")
        return np.frombuffer(data, np.uint8).reshape(shape)


class _Dtype:
    """Stands in for numpy.dtype."""

    def __init__(self, name: Any = None, *rest: Any) -> None:
        self.name = name

    def __setstate__(self, state: Any) -> None:
        """Byte order and the like: one byte has none."""


class _Ndarray:
    """Stands in for numpy.ndarray, which is named only to be handed to `_reconstruct`."""

    def __setstate__(self, state: Any) -> None:
        raise Refused("numpy.ndarray made directly")


def _reconstruct(*arguments: Any) -> PickledArray:
    return PickledArray()


def _encode(text: Any, codec: Any = None) -> bytes:
    """How Python 3 writes bytes in the protocol of Python 2: latin-1 text."""
    if not isinstance(text, str) or codec not in ("latin1", "latin-1"):
        raise Refused(f"_codecs.encode to {codec!r}")
    return text.encode("latin-1")


_ADMITTED = {
    **{(module, "_reconstruct"): _reconstruct for module in ("numpy.core.multiarray", "numpy._core.multiarray")},
    ("numpy", "ndarray"): _Ndarray,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise Refused(f"{module}.{name}")
        return _ADMITTED[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise Refused("a reference to outside the file")


def load_pickle(content: bytes) -> Any:
    """What the pickle `content` holds: dicts, lists, tuples, numbers, text, bytes, and arrays as `PickledArray`.

    Text that Python 2 wrote comes as bytes.

    Raises:
        Refused: it asks for anything else; nothing has been run.
        ValueError: it is no pickle, or a damaged one.
    """
    try:
        return _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except Refused:
        raise
    # A damaged pickle can fail in any opcode, each with an exception of its own.
    except Exception as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
