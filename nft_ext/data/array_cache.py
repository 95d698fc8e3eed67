"""A cache of decoded images: one .npz file beside the data, whole or absent, used only for the files it was made of."""

from __future__ import annotations

import os
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np

from nft_ext._common.files import atomic_file

KEY = "made_of"


def read_cache(path: Path, key: str) -> dict[str, np.ndarray] | None:
    """The arrays of the cache at `path`; None if there is none, it is of other files, or (with a warning) is damaged.

    Args:
        key: what the files it was made of look like; another one means they changed.
    """
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            if KEY not in file or str(file[KEY]) != key:
                return None
            return {name: file[name] for name in file.files if name != KEY}  # zip checks each array's CRC
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        warnings.warn(f"{path}: a damaged cache ({error}); made anew", stacklevel=3)
        return None


def write_cache(path: Path, key: str, arrays: dict[str, np.ndarray]) -> None:
    """Writes the cache whole or not at all; where that fails (no right to write, disk full) it warns and goes on."""
    try:
        with atomic_file(path) as file:
            np.savez(file, **{KEY: np.array(key)}, **arrays)
    except OSError as error:
        warnings.warn(
            f"{path}: the cache could not be written ({os.strerror(error.errno)}); the images will be decoded again",
            stacklevel=3,
        )
