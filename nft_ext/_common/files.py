"""Writes files atomically: a reader sees the old file or the complete new one."""

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

SUFFIX = ".tmp"  # of temporary files


@contextmanager
def atomic_file(path: str | PathLike) -> Iterator[IO[bytes]]:
    """A file to write into. At the end it replaces the file at `path`; readers see the old file or the new one.

    The content goes to a temporary file in the same folder and is flushed to disk before the rename. A crash, a full
    disk or an error inside leaves the old file. A symbolic link keeps its place: its target is replaced. A pipe or
    another special file is written directly.

    Raises:
        OSError: the folder is not writable, or the disk is full. The error names `path`.
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
    """Replaces the file at `path` with `content`, by `atomic_file`."""
    with atomic_file(path) as file:
        file.write(content)


def write_json(path: str | PathLike, content: Any, *, strict: bool = False) -> None:
    """Writes `content` as JSON, atomically.

    Args:
        path: the file.
        content: what `json.dumps` accepts.
        strict: refuse NaN and infinity, which are not standard JSON.

    Raises:
        TypeError, ValueError: JSON cannot hold `content`.
        OSError: the file cannot be written.
    """
    write_atomically(path, (json.dumps(content, indent=1, allow_nan=not strict) + "\n").encode())


def finite_or_none(value: Any) -> Any:
    """`value` with None in place of every NaN and infinity, also inside dicts, lists and tuples."""
    if isinstance(value, dict):
        return {key: finite_or_none(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite_or_none(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_csv(path: str | PathLike, rows: Iterable[Sequence[Any]], end: str = "\r\n") -> None:
    """Writes `rows` as CSV, atomically.

    Args:
        path: the file.
        rows: the column names, then the data.
        end: the line ending.

    Raises:
        OSError: the file cannot be written.
    """
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator=end).writerows(rows)
    write_atomically(path, text.getvalue().encode())


def remove_leftovers(path: str | PathLike) -> None:
    """Removes temporary files of killed writers of `path`. No other process may be writing `path` meanwhile."""
    target = Path(path).resolve()
    for leftover in target.parent.glob(f".{glob.escape(target.name)}.*{SUFFIX}"):
        leftover.unlink(missing_ok=True)


def check_writable_target(argument: str, path: str | PathLike) -> Path:
    """`path`, checked before long work begins: a file can be written there later.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: `path` is a folder, or its folder is not writable.
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
    # mkstemp makes private files; results get the usual rights. Reading the mask requires setting it.
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def sync_folder(folder: Path) -> None:
    """Flushes a folder's entries to disk on POSIX systems."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
