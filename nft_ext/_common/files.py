"""Writing a file whole or not at all."""

from __future__ import annotations

import glob
import os
import tempfile
from os import PathLike
from pathlib import Path

from nft_ext._common.checks import fail

SUFFIX = ".tmp"  # of a file being written

def write_atomically(path: str | PathLike, content: bytes) -> None:
    """Replaces the file at `path` by `content`; whoever reads, at any moment, sees the old file or the new one.

    The content goes to a temporary file in the same folder, reaches the disk, and takes the name only then:
    a crash or a full disk leaves the old file.

    Raises:
        OSError: the folder is not writable, the disk is full; it names `path`.
    """
    target = Path(path)
    try:
        descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=SUFFIX)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, target)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        what = f"{error.strerror or error}; not written, an older file is kept"
        raise OSError(error.errno, what, str(target)) from error
    _sync_folder(target.parent)


def remove_leftovers(path: str | PathLike) -> None:
    """Removes what a `write_atomically` of `path` left when its process was killed. Nobody else may be writing it."""
    target = Path(path)
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


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
