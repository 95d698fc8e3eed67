"""The same data sets read by torchvision, if it is installed. Never required."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from nft_ext._common.checks import fail, one_of
from nft_ext.data import cifar, mnist
from nft_ext.data.image_set import ImageSet
from nft_ext.data.pixels import IMAGE_SIZE, write_inputs

# name -> (torchvision's class, number of classes, mean, std)
_KNOWN = {
    "mnist": ("MNIST", mnist.CLASSES, mnist.MEAN, mnist.STD),
    "cifar10": ("CIFAR10", cifar.CIFAR10.label_limits[-1], cifar.CIFAR10.mean, cifar.CIFAR10.std),
    "cifar100": ("CIFAR100", cifar.CIFAR100.label_limits[-1], cifar.CIFAR100.mean, cifar.CIFAR100.std),
}


def from_torchvision(dataset: Any, split: str = "train") -> ImageSet:
    """A torchvision MNIST, CIFAR10 or CIFAR100 as `nft_ext.data.load` gives it. Its transforms are ignored.

    Args:
        dataset: holds `.data`, uint8 [n, H, W] or [n, H, W, 3], and `.targets` [n].
        split: "train" or "test", for the name.

    Raises:
        TypeError: dataset is of another class.
        ValueError: its pixels or labels do not fit the class, or another split.
    """
    one_of("split", split, ("train", "test"))
    kinds = {kind: name for name, (kind, *_) in _KNOWN.items()}
    name = kinds.get(type(dataset).__name__)
    if name is None:
        fail("dataset", f"must be torchvision's {', '.join(kinds)}", type(dataset).__name__, TypeError)
    _, classes, mean, std = _KNOWN[name]
    pixels = np.asarray(dataset.data)
    pixels = pixels[:, None] if pixels.ndim == 3 else np.moveaxis(pixels, -1, 1)
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1] != len(mean) or len(pixels) == 0:
        fail(
            "dataset.data",
            f"must be uint8 images of {len(mean)} channels",
            f"{pixels.dtype}, shape {list(pixels.shape)}",
        )
    images = torch.empty(len(pixels), len(mean), IMAGE_SIZE, IMAGE_SIZE)
    write_inputs(images, pixels, 255.0, mean, std)
    return ImageSet(f"{name}/{split}", images, torch.as_tensor(dataset.targets, dtype=torch.int64), classes, mean, std)


def load_torchvision(name: str, folder: Path) -> tuple[ImageSet, ImageSet] | None:
    """(train, test) that torchvision finds in `folder`. None if it finds nothing or is not installed."""
    if name not in _KNOWN:
        return None
    try:
        from torchvision import datasets  # pyright: ignore[reportMissingImports]  # optional
    # With a torch of another build the import raises RuntimeError or OSError, not ImportError.
    except Exception:
        return None
    kind = getattr(datasets, _KNOWN[name][0])
    try:
        parts = [kind(root=str(folder), train=train, download=False) for train in (True, False)]
    except (RuntimeError, OSError):
        return None
    return from_torchvision(parts[0], "train"), from_torchvision(parts[1], "test")
