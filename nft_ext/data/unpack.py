"""Unpacks a downloaded archive: only expected files, all or none, only into one folder."""

from __future__ import annotations

import gzip
import lzma
import os
import shutil
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from nft_ext._common.checks import fail
from nft_ext._common.progress import Progress


def unpack(
    archive: Path, folder: Path, wanted: Callable[[str, int], bool], count: int, progress: bool | None = None
) -> None:
    """Unpacks the wanted members of a .tar.gz or .zip into `folder` and skips the others.

    The members go into a temporary folder first. They are moved when all are complete. Names that could leave `folder`
    (absolute, with ".." or a backslash) are skipped.

    Args:
        archive: the file.
        folder: an existing folder.
        wanted: says whether to unpack a regular file, from its name and its size in bytes.
        count: number of wanted members.
        progress: True: show progress. None: on a terminal only. False: never.

    Raises:
        ValueError: the archive is damaged, has more or fewer wanted members, or has one of them twice.
        OSError: the folder is not writable, or the disk is full.
    """
    aside = Path(tempfile.mkdtemp(dir=folder, prefix=f".{archive.name}."))
    try:
        names: list[str] = []
        opened = _zip_members if archive.suffix == ".zip" else _tar_members
        with opened(archive) as members, Progress(count, f"unpack {archive.name}", "files", progress) as bar:
            for name, size, content in members:
                if not _harmless(name) or not wanted(name, size):
                    continue
                if len(names) == count or (aside / name).exists():
                    fail(str(archive), f"must hold {count} different files of the data set", f"another {name}")
                (aside / name).parent.mkdir(parents=True, exist_ok=True)
                with content() as source, open(aside / name, "wb") as target:
                    shutil.copyfileobj(source, target)
                names.append(name)
                bar.update(1)
        if len(names) != count:
            fail(str(archive), f"must hold {count} files of the data set", f"{len(names)}")
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(aside / name, folder / name)
    except ARCHIVE_ERRORS as error:
        fail(str(archive), "must be a complete archive", str(error))
    finally:
        shutil.rmtree(aside)


def _harmless(name: str) -> bool:
    outside = name.startswith("/") or "\\" in name or ":" in name or ".." in name.split("/")
    return bool(name) and not outside


# RuntimeError: an encrypted member; NotImplementedError: an unknown compression.
ARCHIVE_ERRORS = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    gzip.BadGzipFile,
    EOFError,
    RuntimeError,
    NotImplementedError,
    struct.error,
)

Member = tuple[str, int, Callable[[], IO[bytes]]]


@contextmanager
def _tar_members(archive: Path) -> Iterator[Iterator[Member]]:
    """(name, size, opener) of the regular files, without links and devices."""
    with tarfile.open(archive, "r:*") as file:
        yield (
            (m.name.removeprefix("./"), m.size, lambda m=m: cast(IO[bytes], file.extractfile(m)))
            for m in file
            if m.isreg()
        )


@contextmanager
def _zip_members(archive: Path) -> Iterator[Iterator[Member]]:
    with zipfile.ZipFile(archive) as file:
        regular = (m for m in file.infolist() if not m.is_dir() and (m.external_attr >> 16) & 0o170000 in (0, 0o100000))
        yield ((m.filename, m.file_size, lambda m=m: file.open(m)) for m in regular)
