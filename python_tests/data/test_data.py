"""The data readers: real images come out right; a missing, short or corrupt file is named with what was expected.

Tests of the real MNIST and CIFAR files run where NFT_EXT_DATA names a folder that holds them.
"""

import dataclasses
import gzip
import os
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from nft_ext import data
from nft_ext.data import cifar, mnist
from nft_ext.data.files import data_folder
from nft_ext.data.pixels import IMAGE_SIZE, write_inputs


def real(name, folder):
    """The data folder, or a skip that says why."""
    root = os.environ.get("NFT_EXT_DATA")
    if not root:
        pytest.skip(f"NFT_EXT_DATA is not set: it should name a folder with the published {name} files")
    if not (Path(root) / folder).is_dir():
        pytest.skip(f"NFT_EXT_DATA={root} has no {folder}, so no {name}")
    return root


def idx_bytes(array):
    return struct.pack(f">{1 + array.ndim}I", 0x0800 | array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


# ---- MNIST --------------------------------------------------------------------------------------------------------


@pytest.fixture
def little_mnist(monkeypatch):
    """MNIST's four files with 20 + 5 images; returns a function that writes them into a folder."""
    counts = {"train": 20, "test": 5}
    small = {
        split: tuple(dataclasses.replace(f, shape=(counts[split], *f.shape[1:])) for f in files)
        for split, files in mnist.FILES.items()
    }
    monkeypatch.setattr(mnist, "FILES", small)
    rng = np.random.default_rng(0)
    content = {
        f.name: rng.integers(0, 256 if len(f.shape) == 3 else 10, f.shape, dtype=np.uint8)
        for files in small.values()
        for f in files
    }

    def write(folder, packed):
        folder.mkdir(parents=True, exist_ok=True)
        for name, array in content.items():
            path = folder / (name + ".gz" if packed else name)
            path.write_bytes(gzip.compress(idx_bytes(array)) if packed else idx_bytes(array))
        return content

    return write


@pytest.mark.filterwarnings("ignore:.*right format")
@pytest.mark.parametrize("folder", ["MNIST/raw", "mnist", "."])
@pytest.mark.parametrize("packed", [False, True])
def test_mnist_is_found_in_the_usual_folders_resized_and_normalised(tmp_path, little_mnist, folder, packed):
    content = little_mnist(tmp_path / folder, packed)
    train, test = data.load("mnist", tmp_path)
    assert (len(train), len(test), train.num_classes, train.name, test.name) == (20, 5, 10, "mnist/train", "mnist/test")
    pixels = torch.from_numpy(content["t10k-images-idx3-ubyte"])[:, None].double() / 255
    resized = torch.nn.functional.interpolate(pixels, size=(32, 32), mode="bilinear")
    torch.testing.assert_close(test.images.double(), (resized - 0.1307) / 0.3081, rtol=0, atol=2e-6)
    assert test.labels.tolist() == content["t10k-labels-idx1-ubyte"].tolist()


@pytest.mark.filterwarnings("ignore:.*right format")
def test_mnist_labels_out_of_range_are_named_with_their_file(tmp_path, little_mnist):
    little_mnist(tmp_path, packed=False)
    path = tmp_path / "train-labels-idx1-ubyte"
    path.write_bytes(idx_bytes(np.array([3] * 7 + [10] + [3] * 12)))
    message = rf"{path}: must be MNIST's training labels, each in 0..9; got label 10 at index 7. Get it with: "
    with pytest.raises(ValueError, match=message):
        data.load("mnist", tmp_path)


@pytest.mark.parametrize("packed", [False, True])
def test_a_missing_mnist_file_is_named_with_the_command_that_fetches_it(tmp_path, little_mnist, packed):
    little_mnist(tmp_path / "MNIST" / "raw", packed)
    name = "t10k-labels-idx1-ubyte" + (".gz" if packed else "")
    (tmp_path / "MNIST" / "raw" / name).unlink()
    with pytest.raises(FileNotFoundError) as error:
        data.load("mnist", tmp_path)
    target = tmp_path / "MNIST" / "raw" / "t10k-labels-idx1-ubyte.gz"
    assert str(error.value).startswith(f"{target}: must be MNIST's test labels (idx, magic number 0x00000801")
    assert f"curl -fL --create-dirs -o '{target}' https://" in str(error.value)
    assert "md5 of the .gz: ec29112dd5afa0611ce80d1b7f02629c" in str(error.value)


# ---- CIFAR --------------------------------------------------------------------------------------------------------

LITTLE = {
    "cifar10": dataclasses.replace(cifar.CIFAR10, splits={k: (f, 4) for k, (f, _) in cifar.CIFAR10.splits.items()}),
    "cifar100": dataclasses.replace(cifar.CIFAR100, splits={k: (f, 4) for k, (f, _) in cifar.CIFAR100.splits.items()}),
}


def write_cifar(archive, root):
    """Random records of `archive` under `root`; returns {file name: uint8 [4, record]}."""
    rng = np.random.default_rng(1)
    folder = root / archive.folder
    folder.mkdir()
    content = {}
    for files, count in archive.splits.values():
        for file in files:
            labels = [rng.integers(0, limit, (count, 1), dtype=np.uint8) for limit in archive.label_limits]
            pixels = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
            content[file] = np.concatenate([*labels, pixels], axis=1)
            content[file].tofile(folder / file)
    return content


@pytest.mark.parametrize("name", LITTLE)
def test_cifar_records_become_planes_labels_and_splits_in_order(tmp_path, name):
    archive = LITTLE[name]
    content = write_cifar(archive, tmp_path)
    for split, images in zip(("train", "test"), cifar.load(archive, tmp_path), strict=True):
        records = np.concatenate([content[file] for file in archive.splits[split][0]])
        labels = len(archive.label_limits)
        assert images.labels.tolist() == records[:, labels - 1].tolist()  # of CIFAR-100, the fine label
        assert images.num_classes == archive.label_limits[-1] and images.name == f"{name}/{split}"
        pixels = records[:, labels:].reshape(-1, 3, 32, 32).astype(np.float64) / 255
        expected = (pixels - np.reshape(archive.mean, (3, 1, 1))) / np.reshape(archive.std, (3, 1, 1))
        np.testing.assert_allclose(images.images.numpy(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", LITTLE)
@pytest.mark.parametrize(
    "damage, found",
    [
        (lambda b: b[:-1], "only {n} bytes"),
        (lambda b: b"", "only 0 bytes"),
        (lambda b: b + b"x", "more bytes than that"),
    ],
)
def test_a_cifar_file_of_the_wrong_size_is_named(tmp_path, name, damage, found):
    archive = LITTLE[name]
    write_cifar(archive, tmp_path)
    path = tmp_path / archive.folder / archive.splits["test"][0][0]
    good = path.read_bytes()
    path.write_bytes(damage(good))
    size = f"{len(good) // 4} bytes ({len(good)} bytes)"
    expected = f"{path}: must be 4 records of {size} of {name}'s binary version; got "
    with pytest.raises(ValueError, match=re.escape(expected + found.format(n=len(good) - 1))):
        cifar.load(archive, tmp_path)


@pytest.mark.parametrize("name, byte, limit", [("cifar10", 0, 10), ("cifar100", 0, 20), ("cifar100", 1, 100)])
def test_a_cifar_label_out_of_range_is_named(tmp_path, name, byte, limit):
    archive = LITTLE[name]
    content = write_cifar(archive, tmp_path)
    file = archive.splits["train"][0][-1]
    content[file][2, byte] = limit
    content[file].tofile(tmp_path / archive.folder / file)
    message = rf"{file}: must be records whose label byte {byte} is in 0..{limit - 1}; got {limit} in record 2"
    with pytest.raises(ValueError, match=message):
        cifar.load(archive, tmp_path)


@pytest.mark.parametrize("name", LITTLE)
def test_a_missing_cifar_file_is_named_with_the_command_that_fetches_it(tmp_path, name):
    with pytest.raises(
        FileNotFoundError,
        match=rf"no such file. Get it with: nft-ext fetch {name} --data-dir .*{LITTLE[name].tar}.*tar xzf",
    ):
        data.load(name, tmp_path)


# ---- resizing -----------------------------------------------------------------------------------------------------


def test_resizing_is_bilinear_between_pixel_centres():
    """Against the formula: source coordinate (i + 1/2) * h/32 - 1/2, clamped to the outermost pixel centres."""
    rng = np.random.default_rng(2)
    pixels = rng.integers(0, 17, (3, 1, 8, 8), dtype=np.uint8)
    out = torch.full((3, 1, 32, 32), torch.nan)
    write_inputs(out, pixels, 16.0, (0.0,), (1.0,))
    position = np.clip((np.arange(32) + 0.5) * 8 / 32 - 0.5, 0, 7)
    low = np.minimum(position.astype(int), 6)
    weights = np.zeros((32, 8))
    weights[np.arange(32), low] = 1 - (position - low)
    weights[np.arange(32), low + 1] += position - low
    np.testing.assert_allclose(out[:, 0].numpy(), weights @ (pixels[:, 0] / 16) @ weights.T, rtol=0, atol=1e-6)


def test_images_of_the_right_size_pass_unresized_and_every_image_is_written():
    pixels = np.random.default_rng(3).integers(0, 256, (4100, 2, 32, 32), dtype=np.uint8)  # more than two chunks
    out = torch.full((4100, 2, 32, 32), torch.nan)
    write_inputs(out, pixels, 255.0, (0.5, 0.25), (0.5, 2.0))
    for channel, (mean, std) in enumerate([(0.5, 0.5), (0.25, 2.0)]):
        expected = (pixels[:, channel] / np.float32(255) - np.float32(mean)) / np.float32(std)
        np.testing.assert_array_equal(out[:, channel].numpy(), expected)


def test_models_and_data_agree_on_the_image_size():
    from nft_ext.models import common

    assert common.IMAGE_SIZE == IMAGE_SIZE


# ---- digits -------------------------------------------------------------------------------------------------------


def test_digits_are_scikit_learns_with_the_last_360_held_out():
    datasets = pytest.importorskip("sklearn.datasets", reason="digits come with scikit-learn, which is not installed")
    bundle = datasets.load_digits()
    train, test = data.load("digits")
    assert (train.images.shape, test.images.shape) == ((1437, 1, 32, 32), (360, 1, 32, 32))
    assert (train.name, test.name, train.num_classes) == ("digits/train", "digits/test", 10)
    assert torch.cat([train.labels, test.labels]).tolist() == bundle.target.tolist()
    grey = (torch.cat([train.images, test.images])[:, 0] * train.std[0] + train.mean[0]) * 16
    means = grey.reshape(1797, 8, 4, 8, 4).mean(dim=(2, 4)).numpy()  # of the 4x4 pixels over each stored one
    blur = np.diag([7 / 8] + [3 / 4] * 6 + [7 / 8]) + (np.eye(8, k=1) + np.eye(8, k=-1)) / 8  # bilinear's, on average
    np.testing.assert_allclose(means, blur @ bundle.images @ blur.T, rtol=0, atol=1e-4)
    assert abs(train.images.mean()) < 1e-3 and abs(train.images.std() - 1) < 1e-3


def test_digits_without_scikit_learn_say_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match="digits: needs scikit-learn: pip install scikit-learn"):
        data.load("digits")


# ---- load ---------------------------------------------------------------------------------------------------------


def test_names():
    assert data.NAMES == ("digits", "mnist", "cifar10", "cifar100", "tinyimagenet")
    with pytest.raises(
        ValueError, match="dataset: must be one of digits, mnist, cifar10, cifar100, tinyimagenet; got svhn"
    ):
        data.load("svhn")


def test_the_data_folder_is_the_argument_or_else_the_environment_variable(monkeypatch, tmp_path):
    monkeypatch.setenv("NFT_EXT_DATA", str(tmp_path / "absent"))
    assert data_folder(tmp_path, "mnist") == tmp_path
    with pytest.raises(FileNotFoundError, match="NFT_EXT_DATA: must name an existing folder .* mnist; got .*absent"):
        data.load("mnist")
    with pytest.raises(FileNotFoundError, match="data_dir: must name an existing folder"):
        data.load("mnist", tmp_path / "nowhere")
    monkeypatch.delenv("NFT_EXT_DATA")
    with pytest.raises(ValueError, match="data_dir: must name the folder that holds mnist, or .* NFT_EXT_DATA"):
        data.load("mnist")


# ---- the real files -----------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("error")  # the content is the published one
def test_real_mnist():
    train, test = data.load("mnist", real("MNIST", "MNIST/raw"))
    assert (train.images.shape, test.images.shape) == ((60000, 1, 32, 32), (10000, 1, 32, 32))
    assert test.labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert train.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert abs(train.images.mean()) < 0.01 and 0.92 < train.images.std() < 1.0
    lowest, highest = train.images.aminmax()
    assert lowest == pytest.approx(-0.1307 / 0.3081, abs=1e-5) and highest <= (1 - 0.1307) / 0.3081 + 1e-5


@pytest.mark.parametrize("name, archive", [("cifar10", cifar.CIFAR10), ("cifar100", cifar.CIFAR100)])
def test_real_cifar(name, archive):
    train, test = data.load(name, real(name, archive.folder))
    assert (train.images.shape, test.images.shape) == ((50000, 3, 32, 32), (10000, 3, 32, 32))
    for part in (train, test):
        assert set(part.labels.bincount().tolist()) == {len(part) // part.num_classes}
    for channel in range(3):
        assert abs(train.images[:, channel].mean()) < 2e-3 and abs(train.images[:, channel].std() - 1) < 4e-3
