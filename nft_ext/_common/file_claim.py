"""Claims an output file for one process, so that two processes never write the same file in turns."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path

_UNSUPPORTED = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)  # file systems without locks


@contextmanager
def claimed(argument: str, path: str | PathLike) -> Iterator[None]:
    """Holds the lock of the output file `path`. The system releases the lock of a dead process.

    The lock is a hidden file beside it, since a write replaces the file itself.

    Args:
        argument: the caller's name of the path.
        path: a file that `check_writable_target` accepts. Pipes and devices are not locked.

    Raises:
        BlockingIOError: another process or thread holds the lock.
    """
    target = Path(path).resolve()
    if target.exists() and not target.is_file():
        yield
        return
    lock = target.with_name(f".{target.name[:200]}.lock")
    descriptor = _locked(argument, lock, str(path))
    try:
        yield
    finally:
        with suppress(FileNotFoundError):
            lock.unlink()  # while the lock is held: whoever waits for it sees that the file is gone
        os.close(descriptor)


def _locked(argument: str, lock: Path, path: str) -> int:
    while True:
        descriptor = os.open(lock, os.O_CREAT | os.O_RDWR, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_nlink:
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            what = f"{argument}: another training is writing this file; wait for it or name another file"
            raise BlockingIOError(errno.EWOULDBLOCK, what, path) from None
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                return descriptor
            os.close(descriptor)
            raise
        os.close(descriptor)  # its last owner has removed the file
