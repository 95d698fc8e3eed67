"""The idx format of MNIST: a big-endian header (magic number, then each dimension), then the bytes, row-major."""

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
        what: what it holds, for messages.
        shape: its dimensions.
        content_md5: of the unpacked file; the gzip bytes may differ between copies.
        gzip_md5: of the published .gz, for whoever fetches it.
    """

    name: str
    what: str
    shape: tuple[int, ...]
    content_md5: str
    gzip_md5: str

    @property
    def magic(self) -> int:
        """0x08 says unsigned bytes; the last byte is the number of dimensions."""
        return 0x0800 | len(self.shape)

    @property
    def header_size(self) -> int:
        return 4 + 4 * len(self.shape)

    @property
    def size(self) -> int:
        """Bytes, unpacked."""
        return self.header_size + math.prod(self.shape)

    def expected(self) -> str:
        shape = "x".join(str(n) for n in self.shape)
        return f"{self.what} (idx, magic number 0x{self.magic:08x}, {shape}, {self.size} bytes unpacked)"


def read_idx(path: Path, file: IdxFile, remedy: str) -> np.ndarray:
    """The content of `path` as uint8 [*file.shape], read-only; warns if it is well-formed but not as published.

    Raises:
        FileNotFoundError: no such file.
        ValueError: bad gzip, wrong magic number, wrong dimensions, too short or too long.
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
            f"{file.content_md5}): results will not compare with published ones",
            stacklevel=2,
        )
    return np.frombuffer(data, np.uint8, offset=file.header_size).reshape(file.shape)
