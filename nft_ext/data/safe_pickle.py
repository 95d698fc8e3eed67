"""Reads a data set's pickle without executing it. Only arrays, lists, dicts, numbers, text and bytes are admitted.

A pickle is a program that names callables and calls them. Here it may name only the four that NumPy's byte arrays need.
Each of these names gives a stand-in class of this file, which records its arguments. So the file calls no foreign code.
`PickledArray.bytes` checks the record and makes the array.

Nine bytes can make Python's unpickler allocate gigabytes. So the opcodes are read first, and a file that needs more
memory than its own size allows is refused.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from typing import Any

import numpy as np


class Refused(ValueError):
    """The pickle asks for something that is not plain data."""


class PickledArray:
    """Stands in for an array. Holds the arguments from the pickle, not yet checked."""

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def bytes(self) -> np.ndarray:
        """The array, uint8, read-only.

        Raises:
            Refused: it is not a complete array of unsigned bytes in C order.
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
        """Ignores byte order and alignment: single bytes have none."""


class _Ndarray:
    """Stands in for numpy.ndarray, which a pickle names only as an argument of `_reconstruct`."""

    def __setstate__(self, state: Any) -> None:
        raise Refused("numpy.ndarray made directly")


def _reconstruct(*arguments: Any) -> PickledArray:
    return PickledArray()


_ADMITTED = {
    **{(module, "_reconstruct"): _reconstruct for module in ("numpy.core.multiarray", "numpy._core.multiarray")},
    ("numpy", "ndarray"): _Ndarray,
    ("numpy", "dtype"): _Dtype,
}
_MOST_TUPLES = 1000  # an array has three; the hash of deeply nested ones would overflow the stack


class _Unpickler(pickle.Unpickler):
    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content), encoding="bytes")
        self.left = len(content)  # characters that `encode` may still encode: each byte of the file once

    def encode(self, text: Any, codec: Any = None) -> bytes:
        """Decodes the latin-1 text that Python 3 writes for bytes in the protocol of Python 2."""
        if not isinstance(text, str) or codec not in ("latin1", "latin-1"):
            raise Refused(f"_codecs.encode to {codec!r:.40}")
        self.left -= len(text)
        if self.left < 0:
            raise Refused("the same text encoded again and again")
        return text.encode("latin-1")

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):
            return self.encode
        if (module, name) not in _ADMITTED:
            raise Refused(f"{module}.{name}")
        return _ADMITTED[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise Refused("a reference to outside the file")


def _check_opcodes(content: bytes) -> None:
    """Refuses opcodes that take memory, or stack, out of proportion to the file. Raises ValueError if it is damaged."""
    slots = tuples = 0
    for count, (opcode, argument, _) in enumerate(pickletools.genops(content), 1):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT"):
            slots = max(slots, int(argument or 0))
            if slots > 2 * count + 256:  # the unpickler's memo is an array up to the largest slot
                raise Refused(f"memo slot {slots} among {count} opcodes")
        tuples += opcode.name in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3")
        tuples -= opcode.name in ("REDUCE", "BUILD")  # these take one away
        if tuples > _MOST_TUPLES:
            raise Refused(f"more than {_MOST_TUPLES} tuples")


def load_pickle(content: bytes) -> Any:
    """The data of a pickle: dicts, lists, tuples, numbers, text, bytes, and arrays as `PickledArray`.

    Text from Python 2 becomes bytes.

    Raises:
        Refused: the pickle asks for something else. Nothing has been executed.
        ValueError: content is not a pickle, or is damaged.
    """
    try:
        _check_opcodes(content)
        return _Unpickler(content).load()
    except Refused:
        raise
    # A damaged pickle can fail in any opcode, with any kind of exception.
    except Exception as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
