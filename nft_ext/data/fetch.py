"""Downloads the published data sets, verifies them and stores them where the readers expect them.

Sources of the checksums: CIFAR's author publishes them (md5 column of www.cs.toronto.edu/~kriz/cifar.html). MNIST's are
torchvision's. Tiny ImageNet's is the one that other readers of the data set use, because its authors publish none.
`mnist` also checks the unpacked files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nft_ext._common.checks import fail, file_path, number, one_of, optional_boolean
from nft_ext.data import cifar, mnist, tinyimagenet
from nft_ext.data.download import PAUSE, Remote, download
from nft_ext.data.files import ENVIRONMENT
from nft_ext.data.unpack import unpack

TORONTO = ("https://www.cs.toronto.edu/~kriz", "https://cave.cs.toronto.edu/kriz")  # the first redirects to the second
MNIST_MIRRORS = (mnist.MIRROR, "https://storage.googleapis.com/cvdf-datasets/mnist")
TINY_FILE = re.compile(
    r"tiny-imagenet-200/(wnids\.txt|val/val_annotations\.txt|val/images/val_\d+\.JPEG"
    r"|train/(n\d{8})/images/\2_\d+\.JPEG)"
)
TINY_TEXTS = 2  # wnids.txt, val_annotations.txt
LARGEST_TINY = 4 << 20  # bytes, far above the largest file of the data set


@dataclass(frozen=True)
class Source:
    """Addresses and local folder of a data set.

    Attributes:
        remotes: its files.
        folder: their folder in the data folder.
        present: says whether the data folder holds the data set.
        wanted: for an archive, says whether to unpack a member, from its name and size. None: not an archive.
        count: number of members to unpack.
    """

    remotes: tuple[Remote, ...]
    folder: str
    present: Callable[[Path], bool]
    wanted: Callable[[str, int], bool] | None = None
    count: int = 0


def fetch(
    name: str, data_dir: str | os.PathLike | None = None, *, progress: bool | None = None, pause: float = PAUSE
) -> bool:
    """Downloads, verifies and unpacks a data set.

    The next call continues an interrupted download. An unpacked archive is deleted. CIFAR comes in its binary version.

    Args:
        name: mnist, cifar10, cifar100 or tinyimagenet.
        data_dir: the data folder, created if missing. None: the environment variable NFT_EXT_DATA.
        progress: True: show progress. None: on a terminal only. False: never.
        pause: seconds before the second attempt at an address.

    Returns:
        True if the data set was downloaded, False if it was already there.

    Raises:
        TypeError: data_dir is no path.
        ValueError: the name is unknown, progress or pause is bad, no data folder is given, or a file differs from the
            published one.
        ConnectionError: no address sends the file. The message names the addresses, and how to copy the file by hand.
    """
    one_of("dataset", name, SOURCES, " (digits come with scikit-learn)")
    if data_dir not in (None, ""):
        file_path("data_dir", data_dir)
    optional_boolean("progress", progress)
    number("pause", pause, 0.0)
    chosen = data_dir if data_dir is not None else os.environ.get(ENVIRONMENT, "")
    if not str(chosen):
        rule = f"must name the folder for {name}, or the environment variable {ENVIRONMENT} must"
        fail("data_dir", rule, "nothing")
    folder, source = Path(chosen), SOURCES[name]
    if source.present(folder):
        return False
    target = folder / source.folder
    target.mkdir(parents=True, exist_ok=True)
    for remote in source.remotes:
        download(remote, target / remote.name, pause=pause, progress=progress)
        if source.wanted is not None:
            unpack(target / remote.name, target, source.wanted, source.count, progress)
            (target / remote.name).unlink()
    if not source.present(folder):
        fail(
            str(target),
            f"must hold {name} now",
            "another file that is read first and is not the published one; remove it",
        )
    return True


def _mnist() -> Source:
    remotes = tuple(
        Remote(
            f"{file.name}.gz",
            tuple(f"{mirror}/{file.name}.gz" for mirror in MNIST_MIRRORS),
            file.gzip_md5,
            "torchvision",
        )
        for files in mnist.FILES.values()
        for file in files
    )
    return Source(remotes, "MNIST/raw", mnist.present)


def _cifar(archive: cifar.Archive) -> Source:
    record = len(archive.label_limits) + cifar.PIXELS
    sizes = {f"{archive.folder}/{file}": count * record for files, count in archive.splits.values() for file in files}

    def present(folder: Path) -> bool:
        return all((folder / file).is_file() and (folder / file).stat().st_size == size for file, size in sizes.items())

    urls = tuple(f"{place}/{archive.tar}" for place in TORONTO)
    remote = Remote(archive.tar, urls, archive.tar_md5, "the data set's author")
    return Source((remote,), ".", present, lambda name, size: sizes.get(name) == size, len(sizes))


def _tinyimagenet() -> Source:
    tree = tinyimagenet.TREE
    urls = (tinyimagenet.URL, tinyimagenet.URL.replace("http:", "https:"))
    remote = Remote(tinyimagenet.ZIP, urls, tinyimagenet.ZIP_MD5, "readers of the data set, not by its authors")
    return Source(
        (remote,),
        ".",
        tinyimagenet.present,
        lambda name, size: TINY_FILE.fullmatch(name) is not None and size <= LARGEST_TINY,
        tree.classes * tree.per_class + tree.test + TINY_TEXTS,
    )


SOURCES = {
    "mnist": _mnist(),
    "cifar10": _cifar(cifar.CIFAR10),
    "cifar100": _cifar(cifar.CIFAR100),
    "tinyimagenet": _tinyimagenet(),
}
