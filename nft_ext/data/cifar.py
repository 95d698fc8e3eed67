"""CIFAR-10 and CIFAR-100: 50,000 + 10,000 colour images of 32x32, from the published binary or Python version.

A record of the binary version has 1 label byte (CIFAR-10) or 2 (CIFAR-100: coarse and fine; we use the fine label).
Then come 3072 pixels: the red, the green and the blue plane, each row by row. `cifar_python` reads the Python version.
If both versions are present, the binary one is read. Digests of single files are published for the Python version only;
a binary file is checked by its length and labels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from nft_ext.data.cifar_python import PIXELS, PythonVersion, read_batch
from nft_ext.data.files import bad_file, read_bytes
from nft_ext.data.image_set import ImageSet
from nft_ext.data.pixels import IMAGE_SIZE, write_inputs


@dataclass(frozen=True)
class Archive:
    """A published binary archive.

    Attributes:
        name: "cifar10" or "cifar100".
        folder: its folder in the data folder.
        label_limits: number of values of each label byte; the last one is the class.
        splits: (file names, records in each file) of "train" and "test".
        mean, std: the usual values per channel of the training images, in units of full scale.
        tar, tar_md5: name and md5 of the published archive.
        python: the same images in the Python version.
    """

    name: str
    folder: str
    label_limits: tuple[int, ...]
    splits: dict[str, tuple[tuple[str, ...], int]]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    tar: str
    tar_md5: str
    python: PythonVersion


CIFAR10 = Archive(
    "cifar10",
    "cifar-10-batches-bin",
    (10,),
    {"train": (tuple(f"data_batch_{k}.bin" for k in range(1, 6)), 10000), "test": (("test_batch.bin",), 10000)},
    (0.4914, 0.4822, 0.4465),
    (0.2470, 0.2435, 0.2616),
    "cifar-10-binary.tar.gz",
    "c32a1d4ab5d03f1284b67883e8d87530",
    PythonVersion(
        "cifar-10-batches-py",
        "labels",
        {"train": (tuple(f"data_batch_{k}" for k in range(1, 6)), 10000), "test": (("test_batch",), 10000)},
        {
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
            "test_batch": "40351d587109b95175f43aff81a1287e",
        },
    ),
)
CIFAR100 = Archive(
    "cifar100",
    "cifar-100-binary",
    (20, 100),
    {"train": (("train.bin",), 50000), "test": (("test.bin",), 10000)},
    (0.5071, 0.4865, 0.4409),
    (0.2673, 0.2564, 0.2762),
    "cifar-100-binary.tar.gz",
    "03b5dce01913d631647c71ecec9e9cb8",
    PythonVersion(
        "cifar-100-python",
        "fine_labels",
        {"train": (("train",), 50000), "test": (("test",), 10000)},
        {"train": "16019d7e3df5f24257cddd939b257f8d", "test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
    ),
)


def load(archive: Archive, data_dir: Path) -> tuple[ImageSet, ImageSet]:
    """(train, test) of an archive unpacked in `data_dir`.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is short, too long or damaged, holds a label out of range, or is a pickle with more than
            plain data.
    """
    remedy = (
        f"Get it with: nft-ext fetch {archive.name} --data-dir '{data_dir}', or: "
        f"curl -fLO https://www.cs.toronto.edu/~kriz/{archive.tar} && "
        f"tar xzf {archive.tar} -C '{data_dir}' (md5 of the archive: {archive.tar_md5})"
    )
    pickled = (data_dir / archive.python.folder).is_dir() and not (data_dir / archive.folder).is_dir()
    version = archive.python if pickled else archive
    folder = data_dir / version.folder
    for files, count in version.splits.values():  # report a missing file before any is read
        for file in files:
            if not (folder / file).is_file():
                expected = f"{archive.name}'s Python version, {count} images" if pickled else _expected(archive, count)
                bad_file(folder / file, expected, "no such file", remedy, FileNotFoundError)
    classes = archive.label_limits[-1]

    def batch(path: Path, count: int) -> tuple[np.ndarray, np.ndarray]:
        if pickled:
            return read_batch(path, archive.python.labels, count, classes, remedy, archive.python.md5.get(path.name))
        records, label_bytes = _records(path, archive, count, remedy), len(archive.label_limits)
        pixels = records[:, label_bytes:].reshape(count, 3, IMAGE_SIZE, IMAGE_SIZE)
        return pixels, records[:, label_bytes - 1].astype(np.int64)

    train, test = (
        _read(archive, split, [folder / file for file in files], count, batch)
        for split, (files, count) in version.splits.items()
    )
    return train, test


def _read(
    archive: Archive,
    split: str,
    paths: list[Path],
    count: int,
    batch: Callable[[Path, int], tuple[np.ndarray, np.ndarray]],
) -> ImageSet:
    """One split. `batch` reads pixels uint8 [count, 3, 32, 32] and labels int64 [count] from a file."""
    images = torch.empty(len(paths) * count, 3, IMAGE_SIZE, IMAGE_SIZE)
    labels = torch.empty(len(paths) * count, dtype=torch.int64)
    for k, path in enumerate(paths):
        pixels, classes_of = batch(path, count)
        part = slice(k * count, (k + 1) * count)
        labels[part] = torch.from_numpy(classes_of)
        write_inputs(images[part], pixels, 255.0, archive.mean, archive.std)
    return ImageSet(f"{archive.name}/{split}", images, labels, archive.label_limits[-1], archive.mean, archive.std)


def _records(path: Path, archive: Archive, count: int, remedy: str) -> np.ndarray:
    """The checked records of a file, uint8 [count, label bytes + 3072]."""
    record = len(archive.label_limits) + PIXELS
    data = read_bytes(path, count * record, _expected(archive, count), remedy)
    if len(data) != count * record:
        found = "more bytes than that" if len(data) > count * record else f"only {len(data)} bytes"
        bad_file(path, _expected(archive, count), found, remedy)
    records = np.frombuffer(data, np.uint8).reshape(count, record)
    for byte, limit in enumerate(archive.label_limits):
        worst = int(records[:, byte].argmax())
        if records[worst, byte] >= limit:
            bad_file(
                path,
                f"records whose label byte {byte} is in 0..{limit - 1}",
                f"{records[worst, byte]} in record {worst}",
                remedy,
            )
    return records


def _expected(archive: Archive, count: int) -> str:
    record = len(archive.label_limits) + PIXELS
    return f"{count} records of {record} bytes ({count * record} bytes) of {archive.name}'s binary version"
