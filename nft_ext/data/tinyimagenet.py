"""Tiny ImageNet: 100,000 + 10,000 colour images of 64x64 in 200 classes, from the published tree of JPEG files.

    tiny-imagenet-200/wnids.txt                          the 200 classes
    tiny-imagenet-200/train/WNID/images/WNID_K.JPEG      500 images per class, K = 0..499
    tiny-imagenet-200/val/images/val_K.JPEG              10,000 images
    tiny-imagenet-200/val/val_annotations.txt            one line per image: name, class, box; tab-separated

Test labels are not published. As usual, the published validation images are the test set. Class c is the c-th WNID in
alphabetical order, as in torchvision's ImageFolder.
"""

from __future__ import annotations

import hashlib
import stat
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from nft_ext._common.checks import fail, integer
from nft_ext._common.progress import Progress
from nft_ext.data.array_cache import read_cache, write_cache
from nft_ext.data.files import bad_file, read_bytes
from nft_ext.data.image_set import ImageSet
from nft_ext.data.pixels import IMAGE_SIZE, write_inputs

SIDE = 64  # pixels, as published
MEAN, STD = (0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821)  # the usual values, of the training images
FOLDER = "tiny-imagenet-200"
CACHE = "nft_ext-cache.npz"
LARGEST_TEXT = 1 << 24  # bytes; the annotations have 400 kB
ZIP, ZIP_MD5 = "tiny-imagenet-200.zip", "90528d7ca1a48142e341f4ef8d21d0de"
URL = f"http://cs231n.stanford.edu/{ZIP}"


@dataclass(frozen=True)
class Tree:
    """Number of classes, of training images per class, and of test images."""

    classes: int = 200
    per_class: int = 500
    test: int = 10000


TREE = Tree()


def load(data_dir: Path, size: int = IMAGE_SIZE) -> tuple[ImageSet, ImageSet]:
    """Tiny ImageNet as (train, test).

    The first load decodes the JPEG files (about a minute on one core) and caches the pixels in
    tiny-imagenet-200/nft_ext-cache.npz (1.4 GB). The cache is valid while no file changes its name, its size or its
    time of change.

    Args:
        data_dir: the folder that holds tiny-imagenet-200.
        size: side of the images: 32 (means of two by two pixels, for `nft_ext.models`) or 64 (as published). They take
            1.4 GB or 5.4 GB of memory.

    Raises:
        ValueError: size is neither 32 nor 64, a text file has other content, or an image is damaged or of another size.
        FileNotFoundError: a file is missing.
        ImportError: the images must be decoded and Pillow is not installed.
    """
    if integer("size", size, 1) not in (IMAGE_SIZE, SIDE):
        fail("size", f"must be {IMAGE_SIZE} or {SIDE}", size)
    root = data_dir / FOLDER
    remedy = (
        f"Get it with: nft-ext fetch tinyimagenet --data-dir '{data_dir}', or: curl -fLO {URL} && "
        f"unzip {ZIP} -d '{data_dir}' (md5 of the archive: {ZIP_MD5})"
    )
    files = _files(root, remedy)
    key = _fingerprint(root, files, remedy)
    arrays = read_cache(root / CACHE, key)
    if arrays is None or not _complete(arrays, files):
        arrays = _decode(root, files, remedy)
        write_cache(root / CACHE, key, arrays)
    sets = []
    for split in ("train", "test"):
        pixels, labels = arrays[f"{split}_pixels"], arrays[f"{split}_labels"]
        images = torch.empty(len(pixels), 3, size, size)
        write_inputs(images, pixels, 255.0, MEAN, STD)
        sets.append(ImageSet(f"tinyimagenet/{split}", images, torch.from_numpy(labels), TREE.classes, MEAN, STD))
    return sets[0], sets[1]


def present(data_dir: Path) -> bool:
    """Whether `data_dir` has all files of the data set. The images are not opened."""
    try:
        _fingerprint(data_dir / FOLDER, _files(data_dir / FOLDER, ""), "")
    except (FileNotFoundError, ValueError):
        return False
    return True


def _files(root: Path, remedy: str) -> dict[str, list[tuple[str, int]]]:
    """(path relative to `root`, class) of every image of "train" and "test", from the text files."""
    what = f"the list of Tiny ImageNet's classes ({TREE.classes} different words)"
    wnids = _lines(root / "wnids.txt", what, remedy)
    if len(set(wnids)) != TREE.classes or len(wnids) != TREE.classes or not all(w.isalnum() for w in wnids):
        bad_file(root / "wnids.txt", what, f"{len(set(wnids))} different lines of {len(wnids)}", remedy)
    label_of = {wnid: label for label, wnid in enumerate(sorted(wnids))}
    train = [
        (f"train/{wnid}/images/{wnid}_{k}.JPEG", label)
        for wnid, label in label_of.items()
        for k in range(TREE.per_class)
    ]
    path = root / "val" / "val_annotations.txt"
    what = f"Tiny ImageNet's annotations ({TREE.test} lines: file name, class, box)"
    lines = _lines(path, what, remedy)
    if len(lines) != TREE.test:
        bad_file(path, what, f"{len(lines)} lines", remedy)
    test = {}
    for number, line in enumerate(lines, 1):
        name, wnid = (line.split("\t") + [""])[:2]
        if wnid not in label_of or not name.endswith(".JPEG") or Path(name).name != name or name in test:
            bad_file(path, what, f"{line[:60]!r} in line {number}", remedy)
        test[name] = label_of[wnid]
    return {"train": train, "test": [(f"val/images/{name}", label) for name, label in test.items()]}


def _lines(path: Path, what: str, remedy: str) -> list[str]:
    content = read_bytes(path, LARGEST_TEXT, what, remedy)
    if len(content) > LARGEST_TEXT:
        bad_file(path, what, f"more than {LARGEST_TEXT} bytes", remedy)
    try:
        return content.decode("ascii").splitlines()
    except UnicodeDecodeError as error:
        bad_file(path, what, f"an unreadable file ({error})", remedy)


def _fingerprint(root: Path, files: dict[str, list[tuple[str, int]]], remedy: str) -> str:
    """A hash over name, class, size and time of change of every image. Refuses a missing image."""
    digest = hashlib.sha256(b"nft_ext tinyimagenet 2\n")
    for split, entries in files.items():
        for name, label in entries:
            try:
                found = (root / name).stat()
            except FileNotFoundError:
                bad_file(root / name, "a JPEG image of Tiny ImageNet", "no such file", remedy, FileNotFoundError)
            if not stat.S_ISREG(found.st_mode):
                bad_file(root / name, "a JPEG image of Tiny ImageNet", "not a regular file", remedy)
            digest.update(f"{split} {name} {label} {found.st_size} {found.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _complete(arrays: dict[str, np.ndarray], files: dict[str, list[tuple[str, int]]]) -> bool:
    """Whether a cache holds what `_decode` makes."""
    return all(
        (found := arrays.get(f"{split}_{name}")) is not None and found.shape == shape and found.dtype == dtype
        for split, entries in files.items()
        for name, shape, dtype in (
            ("pixels", (len(entries), 3, SIDE, SIDE), np.uint8),
            ("labels", (len(entries),), np.int64),
        )
    )


def _decode(root: Path, files: dict[str, list[tuple[str, int]]], remedy: str) -> dict[str, np.ndarray]:
    """SPLIT_pixels uint8 [n, 3, 64, 64] and SPLIT_labels int64 [n] of both splits."""
    try:
        from PIL import Image
    except ImportError:
        fail("tinyimagenet", "needs Pillow to decode its images: pip install pillow", "no such package", ImportError)
    arrays = {}
    with Progress(sum(map(len, files.values())), "decode Tiny ImageNet", "images", None) as progress:
        for split, entries in files.items():
            pixels = np.empty((len(entries), 3, SIDE, SIDE), np.uint8)
            for k, (name, _) in enumerate(entries):
                what = f"a JPEG image of {SIDE}x{SIDE} pixels"
                try:
                    with Image.open(root / name, formats=["JPEG"]) as image:
                        if image.size == (SIDE, SIDE):  # known from the header, before decoding
                            pixels[k] = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
                # A damaged image can fail anywhere in the decoder, with any kind of exception.
                except Exception as error:
                    bad_file(root / name, what, f"a damaged image ({error})", remedy)
                if image.size != (SIDE, SIDE):
                    bad_file(root / name, what, f"{image.size[0]}x{image.size[1]}", remedy)
                progress.update(1)
            arrays[f"{split}_pixels"] = pixels
            arrays[f"{split}_labels"] = np.array([label for _, label in entries], np.int64)
    return arrays
