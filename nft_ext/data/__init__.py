"""Image data sets for 32x32 networks, read from published files: `load(name)` -> (train, test).

    digits     scikit-learn's 1,797 handwritten digits; no file needed
    mnist      idx files in DIR/MNIST/raw, DIR/mnist or DIR
    cifar10    binary version in DIR/cifar-10-batches-bin, or Python version in DIR/cifar-10-batches-py
    cifar100   binary version in DIR/cifar-100-binary, or Python version in DIR/cifar-100-python
    tinyimagenet   JPEG files in DIR/tiny-imagenet-200 (needs Pillow), halved to 32x32

DIR is `data_dir`, or else the environment variable NFT_EXT_DATA. `fetch` downloads the files into it. If files are
missing and torchvision is installed, torchvision searches for them. `augment_for(train)` is the paper's augmentation.
"""

from __future__ import annotations

import os

from nft_ext._common.checks import one_of
from nft_ext.data import cifar, digits, mnist, tinyimagenet
from nft_ext.data.augment import CropFlip, augment_for
from nft_ext.data.fetch import SOURCES, fetch
from nft_ext.data.files import data_folder
from nft_ext.data.image_set import ImageSet
from nft_ext.data.normalisation import NORMALISATIONS, as_published
from nft_ext.data.split import split_validation
from nft_ext.data.torchvision_sets import from_torchvision, load_torchvision

_READERS = {
    "mnist": mnist.load,
    "cifar10": lambda folder: cifar.load(cifar.CIFAR10, folder),
    "cifar100": lambda folder: cifar.load(cifar.CIFAR100, folder),
    "tinyimagenet": tinyimagenet.load,
}
NAMES: tuple[str, ...] = ("digits", *_READERS)


def load(
    name: str, data_dir: str | os.PathLike | None = None, normalisation: str = "default"
) -> tuple[ImageSet, ImageSet]:
    """(train, test) of a built-in data set: normalised images float32 [n, C, 32, 32] and labels int64 [n].

    Args:
        name: one of `NAMES`.
        data_dir: the data folder; None: the environment variable NFT_EXT_DATA. `digits` needs no folder.
        normalisation: "default": mean and std of the training images. "published": those of the published code, for
            MNIST 0.5 and 0.5. The sets record mean and std.

    Raises:
        ValueError: the name or the normalisation is unknown, no data folder is given, or a file is short or corrupt.
        FileNotFoundError: the folder or a file is missing. The message says how to get it.
        ImportError: digits needs scikit-learn, tinyimagenet needs Pillow.
    """
    one_of("dataset", name, NAMES)
    if one_of("normalisation", normalisation, NORMALISATIONS) == "default":
        return _read(name, data_dir)
    train, test = _read(name, data_dir)
    return as_published(train), as_published(test)


def _read(name: str, data_dir: str | os.PathLike | None) -> tuple[ImageSet, ImageSet]:
    if name == "digits":
        return digits.load()
    folder = data_folder(data_dir, name)
    try:
        return _READERS[name](folder)
    except FileNotFoundError:
        found = load_torchvision(name, folder)
        if found is None:
            raise
        return found


__all__ = [
    "NAMES",
    "NORMALISATIONS",
    "SOURCES",
    "CropFlip",
    "ImageSet",
    "augment_for",
    "fetch",
    "from_torchvision",
    "load",
    "split_validation",
]
