"""CIFAR-10 and CIFAR-100 from the published Python version: pickled dicts, read by `safe_pickle`.

A file holds b"data", uint8 [n, 3072] (the red, green and blue plane of each image, row by row), and the labels as a
list: b"labels" (CIFAR-10) or b"fine_labels" (CIFAR-100).
"""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nft_ext.data.files import bad_file, read_bytes
from nft_ext.data.pixels import IMAGE_SIZE
from nft_ext.data.safe_pickle import PickledArray, Refused, load_pickle

PIXELS = 3 * IMAGE_SIZE * IMAGE_SIZE
ROOM = 256  # bytes per image for labels and file names


@dataclass(frozen=True)
class PythonVersion:
    """A published archive of pickles.

    Attributes:
        folder: its folder in the data folder.
        labels: the key of the class labels.
        splits: (file names, images in each file) of "train" and "test".
        md5: file name -> md5 of the published file.
    """

    folder: str
    labels: str
    splits: dict[str, tuple[tuple[str, ...], int]]
    md5: dict[str, str]


def read_batch(
    path: Path, labels: str, count: int, classes: int, remedy: str, md5: str | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(pixels uint8 [count, 3, 32, 32], labels int64 [count]) of one file. Warns if its digest is not `md5`.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the pickle is damaged, has other content, or asks for more than data. It is never executed.
    """
    expected = (
        f"a pickled dict of {count} images of {PIXELS} bytes (data) and as many labels in 0..{classes - 1} "
        f"({labels}), nothing but arrays, lists, dicts and bytes"
    )
    # Python 3 writes bytes as UTF-8 text in protocol 2, up to twice as long.
    limit = count * (2 * PIXELS + ROOM) + (1 << 16)
    content = read_bytes(path, limit, expected, remedy)
    if len(content) > limit:
        bad_file(path, expected, f"more than {limit} bytes", remedy)
    try:
        found = load_pickle(content)
        if not isinstance(found, dict):
            raise Refused(f"a pickled {type(found).__name__}")
        found = {key.decode("latin-1") if isinstance(key, bytes) else key: value for key, value in found.items()}
        for key, kind in (("data", PickledArray), (labels, list)):
            if not isinstance(found.get(key), kind):
                raise Refused(f"no {'array' if kind is PickledArray else 'list'} {key!r} in it")
        pixels, classes_of = found["data"].bytes(), found[labels]
    except Refused as error:
        bad_file(path, expected, str(error), remedy)
    except ValueError as error:
        bad_file(path, expected, f"a damaged file ({error})", remedy)
    if pixels.shape != (count, PIXELS):
        bad_file(path, expected, f"data of shape {list(pixels.shape)}", remedy)
    if len(classes_of) != count:
        bad_file(path, expected, f"{len(classes_of)} labels", remedy)
    for index, label in enumerate(classes_of):
        if type(label) is not int or not 0 <= label < classes:
            found = f"{label!r:.40}" if isinstance(label, (bytes, str)) else type(label).__name__
            found = str(label) if type(label) is int and abs(label) < 1 << 64 else found
            bad_file(path, expected, f"label {found} at index {index}", remedy)
    if md5 is not None and hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
        warnings.warn(
            f"{path}: right format, but not the published file (its md5 is not {md5}). Do not compare results "
            "with published ones.",
            stacklevel=2,
        )
    return pixels.reshape(count, 3, IMAGE_SIZE, IMAGE_SIZE), np.array(classes_of, np.int64)
