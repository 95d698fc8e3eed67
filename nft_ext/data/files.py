"""Finds and reads data files. Errors name the file, the expected content and the command to get it."""

from __future__ import annotations

import gzip
import os
import zlib
from pathlib import Path
from typing import NoReturn

from nft_ext._common.checks import fail, file_path
from nft_ext._common.reading import open_regular

ENVIRONMENT = "NFT_EXT_DATA"


def bad_file(path: Path, expected: str, found: str, remedy: str, kind: type[Exception] = ValueError) -> NoReturn:
    """Raises `kind` with "PATH: must be EXPECTED; got FOUND. REMEDY"."""
    fail(str(path), f"must be {expected}", f"{found}. {remedy}", kind)


def data_folder(data_dir: str | os.PathLike | None, name: str) -> Path:
    """The folder of the data sets: `data_dir`, or else the environment variable NFT_EXT_DATA.

    Raises:
        ValueError: both are missing.
        FileNotFoundError: the folder does not exist.
    """
    if data_dir not in (None, ""):
        file_path("data_dir", data_dir)
    source = "data_dir" if data_dir is not None else ENVIRONMENT
    folder = data_dir if data_dir is not None else os.environ.get(ENVIRONMENT, "")
    if not str(folder):
        fail(
            "data_dir",
            f"must name the folder that holds {name}, or the environment variable {ENVIRONMENT} must",
            "nothing",
        )
    if not Path(folder).is_dir():
        fail(source, f"must name an existing folder that holds {name}", str(folder), FileNotFoundError)
    return Path(folder)


def read_bytes(path: Path, size: int, expected: str, remedy: str) -> bytes:
    """The content of `path`, unpacked if its name ends in .gz, at most `size` + 1 bytes.

    The limit protects the memory from a wrong file. At the right size gzip has verified its own checksum.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is unreadable, not a regular file, or not a complete gzip file.
    """
    try:
        with open_regular(path) as file:
            return gzip.GzipFile(fileobj=file).read(size + 1) if path.suffix == ".gz" else file.read(size + 1)
    except FileNotFoundError:
        bad_file(path, expected, "no such file", remedy, FileNotFoundError)
    except EOFError:
        bad_file(path, expected, "a gzip file that ends too early (an interrupted download?)", remedy)
    except (gzip.BadGzipFile, zlib.error) as error:
        bad_file(path, expected, f"a bad gzip file ({error})", remedy)
    except OSError as error:
        bad_file(path, expected, f"an unreadable file ({error.strerror})", remedy)
