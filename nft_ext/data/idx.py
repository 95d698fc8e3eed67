"""MNIST's idx format: a big-endian header (magic number, dimensions), then the bytes in row-major order."""

from __future__ import annotations

import hashlib
import math
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nft_ext.data.files import bad_file, read_bytes


@dataclass(frozen=True)
class IdxFile:
    """A published idx file of unsigned bytes.

    Attributes:
        name: file name without ".gz".
        what: its content in words, for messages.
        shape: its dimensions.
        content_md5: md5 of the unpacked file. The gzip bytes can differ between copies.
        gzip_md5: md5 of the published .gz.
    """

    name: str
    what: str
    shape: tuple[int, ...]
    content_md5: str
    gzip_md5: str

    @property
    def magic(self) -> int:
        """The magic number: 0x08 for unsigned bytes, then the number of dimensions."""
        return 0x0800 | len(self.shape)

    @property
    def header_size(self) -> int:
        return 4 + 4 * len(self.shape)

    @property
    def size(self) -> int:
        """Bytes of the unpacked file."""
        return self.header_size + math.prod(self.shape)

    def expected(self) -> str:
        shape = "x".join(str(n) for n in self.shape)
        return f"{self.what} (idx, magic number 0x{self.magic:08x}, {shape}, {self.size} bytes unpacked)"


def read_idx(path: Path, file: IdxFile, remedy: str) -> np.ndarray:
    """The content of `path` as uint8 [*file.shape], read-only. Warns if it differs from the published content.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the gzip file is damaged, or magic number, dimensions or length are wrong.
    """
    data = read_bytes(path, file.size, file.expected(), remedy)
    if len(data) < file.header_size:
        bad_file(path, file.expected(), f"only {len(data)} bytes", remedy)
    magic, *shape = struct.unpack_from(f">{1 + len(file.shape)}I", data)
    if magic != file.magic:
        bad_file(path, file.expected(), f"magic number 0x{magic:08x}", remedy)
    if tuple(shape) != file.shape:
        bad_file(path, file.expected(), f"a header that says {'x'.join(str(n) for n in shape)}", remedy)
    if len(data) != file.size:
        found = "more bytes than that" if len(data) > file.size else f"only {len(data)} bytes"
        bad_file(path, file.expected(), found, remedy)
    if hashlib.md5(data, usedforsecurity=False).hexdigest() != file.content_md5:
        warnings.warn(
            f"{path}: right format, but not {file.what} as published (md5 of the unpacked file is not "
            f"{file.content_md5}). Do not compare results with published ones.",
            stacklevel=2,
        )
    return np.frombuffer(data, np.uint8, offset=file.header_size).reshape(file.shape)
