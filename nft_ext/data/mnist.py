"""MNIST: 60,000 + 10,000 handwritten digits, 28x28 grey, from its four published idx files (.gz or unpacked)."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from nft_ext.data.files import bad_file, read_bytes
from nft_ext.data.idx import IdxFile, read_idx
from nft_ext.data.image_set import ImageSet
from nft_ext.data.pixels import IMAGE_SIZE, write_inputs

MIRROR = "https://ossci-datasets.s3.amazonaws.com/mnist"
CLASSES = 10
MEAN, STD = (0.1307,), (0.3081,)  # the usual values, of the 28x28 training images; at 32x32 the std is 0.29

FILES = {
    "train": (
        IdxFile(
            "train-images-idx3-ubyte",
            "MNIST's training images",
            (60000, 28, 28),
            "6bbc9ace898e44ae57da46a324031adb",
            "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        ),
        IdxFile(
            "train-labels-idx1-ubyte",
            "MNIST's training labels",
            (60000,),
            "a25bea736e30d166cdddb491f175f624",
            "d53e105ee54ea40749a09fcbcd1e9432",
        ),
    ),
    "test": (
        IdxFile(
            "t10k-images-idx3-ubyte",
            "MNIST's test images",
            (10000, 28, 28),
            "2646ac647ad5339dbf082846283269ea",
            "9fb629c4189551a2d022fa330f9573f3",
        ),
        IdxFile(
            "t10k-labels-idx1-ubyte",
            "MNIST's test labels",
            (10000,),
            "27ae3e4e09519cfbb04c329615203637",
            "ec29112dd5afa0611ce80d1b7f02629c",
        ),
    ),
}


def load(data_dir: Path) -> tuple[ImageSet, ImageSet]:
    """MNIST as (train, test), resized from 28x28 to 32x32. The files are in DIR/MNIST/raw, DIR/mnist or DIR.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is short or corrupt.
    """
    found = {file: _find(data_dir, file) for files in FILES.values() for file in files}  # a missing file fails first
    return _read("train", found), _read("test", found)


def _read(split: str, found: dict[IdxFile, Path]) -> ImageSet:
    image_file, label_file = FILES[split]
    labels = read_idx(found[label_file], label_file, _remedy(found[label_file], label_file))
    if labels.max() >= CLASSES:
        path = found[label_file]
        bad_file(
            path,
            f"{label_file.what}, each in 0..{CLASSES - 1}",
            f"label {labels.max()} at index {labels.argmax()}",
            _remedy(path, label_file),
        )
    pixels = read_idx(found[image_file], image_file, _remedy(found[image_file], image_file))
    images = torch.empty(len(pixels), 1, IMAGE_SIZE, IMAGE_SIZE)
    write_inputs(images, pixels[:, None], 255.0, MEAN, STD)
    return ImageSet(f"mnist/{split}", images, torch.from_numpy(labels.astype("int64")), CLASSES, MEAN, STD)


def present(data_dir: Path) -> bool:
    """Whether `data_dir` holds all four files with the published content."""
    try:
        found = {file: _find(data_dir, file) for files in FILES.values() for file in files}
        content = {file: read_bytes(path, file.size, "", "") for file, path in found.items()}
    except (FileNotFoundError, ValueError):
        return False
    return all(
        hashlib.md5(data, usedforsecurity=False).hexdigest() == file.content_md5 for file, data in content.items()
    )


def _find(data_dir: Path, file: IdxFile) -> Path:
    folders = (data_dir / "MNIST" / "raw", data_dir / "mnist", data_dir)
    for folder in folders:
        for path in (folder / file.name, folder / f"{file.name}.gz"):
            if path.is_file():
                return path
    path = folders[0] / f"{file.name}.gz"
    return bad_file(
        path,
        file.expected(),
        f"no such file, here or in {folders[1]} or {folders[2]}, packed or unpacked",
        _remedy(path, file),
        FileNotFoundError,
    )


def _remedy(path: Path, file: IdxFile) -> str:
    target = path if path.suffix == ".gz" else path.with_name(path.name + ".gz")
    unpack = "" if path.suffix == ".gz" else f" && gunzip -f '{target}'"
    return (
        f"Get it with: nft-ext fetch mnist --data-dir DIR, or: curl -fL --create-dirs -o '{target}' "
        f"{MIRROR}/{file.name}.gz{unpack} (md5 of the .gz: {file.gzip_md5})"
    )
