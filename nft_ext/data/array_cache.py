"""A cache of decoded images: one .npz file beside the data, written atomically, valid for unchanged files only."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np

from nft_ext._common.files import atomic_file

KEY = "made_of"


def read_cache(path: Path, key: str) -> dict[str, np.ndarray] | None:
    """The arrays of the cache at `path`. None if it is missing, has another key, or (with a warning) is damaged.

    Args:
        path: the .npz file.
        key: fingerprint of the files that the cache was made of.
    """
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            # A damaged header may claim any size. The arrays are not compressed, so the file has at least theirs.
            if sum(entry.file_size for entry in file.zip.infolist()) > path.stat().st_size:
                raise ValueError("arrays larger than the file")
            if KEY not in file or str(file[KEY]) != key:
                return None
            return {name: file[name] for name in file.files if name != KEY}  # zip checks each array's CRC
    # A damaged file can fail anywhere in NumPy's readers of zip and npy, with any kind of exception.
    except Exception as error:
        warnings.warn(f"{path}: a damaged cache ({error}); it is rebuilt", stacklevel=3)
        return None


def write_cache(path: Path, key: str, arrays: dict[str, np.ndarray]) -> None:
    """Writes the cache atomically. A failure, such as a full disk, is only a warning."""
    try:
        with atomic_file(path) as file:
            np.savez(file, allow_pickle=False, **{KEY: np.array(key)}, **arrays)
    except OSError as error:
        reason = error.strerror or str(error)
        warnings.warn(
            f"{path}: the cache could not be written ({reason}); the next load decodes the images again",
            stacklevel=3,
        )
