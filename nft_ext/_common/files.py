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
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path
from typing import IO, Any

from nft_ext._common.checks import fail

SUFFIX = ".tmp"  # of temporary files
LONGEST = 200  # bytes of a name that a temporary file repeats


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
        try:
            with open(target, "wb") as file:
                yield file
        except OSError as error:
            raise OSError(error.errno or errno.EIO, f"{error.strerror or error}; not written", str(target)) from error
        return
    try:
        descriptor, temporary = _temporary(target)
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, target)
        except BaseException:
            with suppress(FileNotFoundError):  # an interrupt can come just after the rename
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
    # mkstemp adds eight such characters. A wider pattern would reach files of other writers: of "a.csv" beside "a".
    for leftover in target.parent.glob(f"{glob.escape(_prefix(target))}{'[a-z0-9_]' * 8}{SUFFIX}"):
        leftover.unlink(missing_ok=True)


def check_writable_target(argument: str, path: str | PathLike) -> Path:
    """`path`, checked before long work begins: a file can be written there later.

    The check writes and removes a temporary file as a later write does, so it finds whatever the system refuses.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: `path` is a folder, or the system refuses to write there.
    """
    try:
        target = Path(path).resolve()
        if target.is_dir():
            fail(argument, "must name a file, not a folder", str(path))
        if not target.parent.is_dir():
            fail(argument, "must lie in an existing folder", str(path), kind=FileNotFoundError)
        if not target.exists() or target.is_file():  # else a pipe or a device
            descriptor, temporary = _temporary(target)
            os.close(descriptor)
            os.unlink(temporary)
    except FileNotFoundError:
        raise
    except OSError as error:
        fail(argument, f"must lie in a writable folder ({error.strerror})", str(path))
    return Path(path)


def make_writable_folder(argument: str, path: str | PathLike) -> Path:
    """`path` as a folder in which files can be written. A missing folder is created, also its parents.

    Raises:
        ValueError: `path` is a file, or the system refuses to create the folder or to write in it.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fail(argument, f"must be a folder or the name of a new one ({error.strerror})", str(path))
    check_writable_target(argument, folder / "file")
    return folder


def check_distinct(paths: Mapping[str, str | PathLike | None]) -> None:
    """Refuses two arguments that name the same file.

    Args:
        paths: argument -> path, or None for an argument that is not given.

    Raises:
        ValueError: two paths lead to one file.
    """
    seen: dict[Path, str] = {}
    for argument, path in paths.items():
        if path is None:
            continue
        if (first := seen.setdefault(Path(path).resolve(), argument)) != argument:
            fail(argument, f"must name another file than {first}", str(path))


def number_in_name(value: float) -> str:
    """`value` for a file name, short and different for different numbers: 0.1, 1, 0.1000001."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


def _temporary(target: Path) -> tuple[int, str]:
    return tempfile.mkstemp(dir=target.parent, prefix=_prefix(target), suffix=SUFFIX)


def _prefix(target: Path) -> str:
    """The beginning of the names of temporary files. A long name is cut, because the system limits names."""
    if len(os.fsencode(target.name)) <= LONGEST:
        return f".{target.name}."
    return f".{zlib.crc32(os.fsencode(target.name)):08x}."


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
