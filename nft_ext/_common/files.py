"""Writing a file whole or not at all."""

from __future__ import annotations

import csv
import errno
import glob
import io
import json
import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import IO, Any

from nft_ext._common.checks import fail

SUFFIX = ".tmp"  # of a file being written


@contextmanager
def atomic_file(path: str | PathLike) -> Iterator[IO[bytes]]:
    """A file to write into; at the end it replaces the one at `path`. Whoever reads sees the old file or the new one.

    The content goes to a temporary file in the same folder, reaches the disk, and takes the name only then:
    a crash, a full disk or an error inside leaves the old file. Of a symbolic link the file behind it is replaced;
    what is no file, such as a pipe, is written to as it is.

    Raises:
        OSError: the folder is not writable, the disk is full; it names `path`.
    """
    target = Path(path).resolve()
    if target.exists() and not target.is_file():
        with open(target, "wb") as file:
            yield file
        return
    try:
        descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=SUFFIX)
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, target)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        what = f"{error.strerror or error}; not written, an older file is kept"
        raise OSError(error.errno or errno.EIO, what, str(target)) from error
    sync_folder(target.parent)


def write_atomically(path: str | PathLike, content: bytes) -> None:
    """Replaces the file at `path` by `content`, as `atomic_file` does."""
    with atomic_file(path) as file:
        file.write(content)


def write_json(path: str | PathLike, content: Any, *, strict: bool = False) -> None:
    """`content` as JSON, whole or not at all.

    Args:
        strict: refuse NaN and infinity, which other readers of JSON than Python's do not know.

    Raises:
        TypeError, ValueError: what JSON cannot hold. OSError: it cannot be written.
    """
    write_atomically(path, (json.dumps(content, indent=1, allow_nan=not strict) + "\n").encode())


def finite_or_none(value: Any) -> Any:
    """`value` with None for every NaN and infinity in it, as JSON takes it; dicts, lists and tuples are looked into."""
    if isinstance(value, dict):
        return {key: finite_or_none(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite_or_none(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_csv(path: str | PathLike, rows: Iterable[Sequence[Any]], end: str = "\r\n") -> None:
    """`rows` as CSV, the names of the columns first, each line closed by `end`; whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator=end).writerows(rows)
    write_atomically(path, text.getvalue().encode())


def remove_leftovers(path: str | PathLike) -> None:
    """Removes what a `write_atomically` of `path` left when its process was killed. Nobody else may be writing it."""
    target = Path(path).resolve()
    for leftover in target.parent.glob(f".{glob.escape(target.name)}.*{SUFFIX}"):
        leftover.unlink(missing_ok=True)


def check_writable_target(argument: str, path: str | PathLike) -> Path:
    """`path` as a file that can be written later; found out before long work begins.

    Raises:
        FileNotFoundError: its folder does not exist.
        ValueError: it is a folder, or its folder is not writable.
    """
    target = Path(path)
    if not target.parent.is_dir():
        fail(argument, "must lie in an existing folder", str(target), kind=FileNotFoundError)
    if target.is_dir():
        fail(argument, "must name a file, not a folder", str(target))
    if not os.access(target.parent, os.W_OK):
        fail(argument, "must lie in a writable folder", str(target))
    return target


def _umask() -> int:
    # mkstemp makes files private; a result is to have the usual rights. The mask can only be read by setting it.
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def sync_folder(folder: Path) -> None:
    """Brings a folder's names to the disk, where the system can."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
