"""Reads files that users name, which may be anything: a pipe, a device, another kind of file, a damaged one."""

from __future__ import annotations

import errno
import json
import os
import stat
from os import PathLike
from typing import IO, Any

from nft_ext._common.checks import fail

LARGEST_JSON = 1 << 28  # bytes, far above any file of this package


def open_regular(path: str | PathLike) -> IO[bytes]:
    """The file at `path`, opened for reading. A pipe would block, and a device may never end.

    Raises:
        FileNotFoundError: no such file.
        OSError: not a regular file, or not readable.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        check_regular(descriptor, path)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def check_regular(descriptor: int, path: str | PathLike) -> None:
    """Refuses an open file that is not a regular one.

    Raises:
        OSError: a folder, a pipe or a device. The error names `path`.
    """
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))


def read_json(argument: str, path: str | PathLike, expected: str) -> dict[str, Any]:
    """The JSON object in the file at `path`.

    Args:
        argument: the caller's name of the path, for error messages.
        path: the file.
        expected: its content in words, for error messages.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a regular file, too large, damaged, or no JSON object.
    """
    rule = f"must be {expected}"
    try:
        with open_regular(path) as file:
            content = file.read(LARGEST_JSON + 1)
    except FileNotFoundError:
        fail(argument, rule, f"no file {path}", kind=FileNotFoundError)
    except OSError as error:
        fail(argument, rule, f"{path}: {error.strerror}")
    if len(content) > LARGEST_JSON:
        fail(argument, rule, f"{path}: more than {LARGEST_JSON} bytes")
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        fail(argument, rule, f"{path}: a damaged file ({error})")
    if not isinstance(found, dict):
        fail(argument, rule, f"{path}: a JSON {type(found).__name__}")
    return found
