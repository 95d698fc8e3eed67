"""Tiny ImageNet's tree: read right, cached, and every missing or damaged file named."""

import re

import numpy as np
import pytest
import torch

from nft_ext import data
from nft_ext.data import tinyimagenet
from nft_ext.data.tinyimagenet import CACHE, FOLDER, MEAN, STD

Image = pytest.importorskip("PIL.Image", reason="Tiny ImageNet's images are decoded by Pillow, which is not installed")

WNIDS = ["n03444034", "n01443537", "n02124075"]  # not in alphabetical order, as in the published file
LABEL = {"n01443537": 0, "n02124075": 1, "n03444034": 2}


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Three classes of two images, four test images; each image one colour, which JPEG keeps to within rounding."""
    monkeypatch.setattr(tinyimagenet, "TREE", tinyimagenet.Tree(classes=3, per_class=2, test=4))
    root = tmp_path / FOLDER
    (root / "val" / "images").mkdir(parents=True)
    (root / "wnids.txt").write_text("\n".join(WNIDS) + "\n")
    colours = {}
    for c, wnid in enumerate(WNIDS):
        (root / "train" / wnid / "images").mkdir(parents=True)
        for k in range(2):
            colours[f"train/{wnid}/images/{wnid}_{k}.JPEG"] = (40 * c + 10, 100 + k, 200 - 30 * c)
    lines = []
    for k, wnid in enumerate(["n02124075", "n03444034", "n02124075", "n01443537"]):
        colours[f"val/images/val_{k}.JPEG"] = (7 * k, 90, 30 + 50 * k)
        lines.append(f"val_{k}.JPEG\t{wnid}\t0\t32\t44\t62\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    for name, colour in colours.items():
        Image.new("RGB", (64, 64), colour).save(root / name, "JPEG", quality=98, subsampling=0)
    return root, colours


def expected(colours, prefix, size):
    chosen = torch.tensor([colour for name, colour in colours.items() if name.startswith(prefix)]) / 255
    pixels = chosen[:, :, None, None].expand(-1, 3, size, size)
    return (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


@pytest.mark.parametrize("size", [32, 64])
def test_images_labels_and_splits(tree, size):
    root, colours = tree
    train, test = tinyimagenet.load(root.parent, size)
    by_class = dict(sorted(colours.items()))  # training images come class by class, classes in alphabetical order
    tolerance = 2.1 / 255 / min(STD)  # JPEG's colour transform rounds
    torch.testing.assert_close(train.images, expected(by_class, "train", size), rtol=0, atol=tolerance)
    torch.testing.assert_close(test.images, expected(colours, "val", size), rtol=0, atol=tolerance)
    assert train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert test.labels.tolist() == [LABEL[w] for w in ("n02124075", "n03444034", "n02124075", "n01443537")]
    assert (train.name, test.name, train.num_classes) == ("tinyimagenet/train", "tinyimagenet/test", 3)
    assert (train.mean, train.std) == (MEAN, STD)


def test_load_gives_what_the_models_take(tree):
    train, _ = data.load("tinyimagenet", tree[0].parent)
    assert train.images.shape == (6, 3, 32, 32)


def test_half_the_side_is_the_mean_of_two_by_two(tree):
    root, _ = tree
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(root / "val/images/val_2.JPEG", "JPEG")
    (_, large), (_, small) = tinyimagenet.load(root.parent, 64), tinyimagenet.load(root.parent, 32)
    means = large.images.reshape(4, 3, 32, 2, 32, 2).mean(dim=(3, 5))
    torch.testing.assert_close(small.images, means, rtol=0, atol=1e-5)


def test_grey_images_become_three_equal_channels(tree):
    root, _ = tree
    Image.new("L", (64, 64), 130).save(root / "val/images/val_0.JPEG", "JPEG")
    std, mean = torch.tensor(STD).view(3, 1, 1), torch.tensor(MEAN).view(3, 1, 1)
    pixels = tinyimagenet.load(root.parent)[1].images[0] * std + mean
    torch.testing.assert_close(255 * pixels, torch.full((3, 32, 32), 130.0), rtol=0, atol=1.1)


# ---- the cache ----------------------------------------------------------------------------------------------------


def test_the_second_read_decodes_nothing_and_gives_the_same(tree, monkeypatch):
    root, _ = tree
    first = tinyimagenet.load(root.parent)
    assert [p.name for p in root.iterdir() if "cache" in p.name] == [CACHE]  # no temporary file is left
    monkeypatch.setattr(Image, "open", lambda *a, **k: pytest.fail("decoded again"))
    for a, b in zip(first, tinyimagenet.load(root.parent)):
        assert torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels)


def test_a_cache_of_other_files_is_made_anew(tree):
    root, _ = tree
    before = tinyimagenet.load(root.parent)[1]
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(root / "val/images/val_1.JPEG", "JPEG")
    after = tinyimagenet.load(root.parent)[1]
    assert not torch.equal(before.images[1], after.images[1]) and torch.equal(before.images[2], after.images[2])


def test_a_cache_of_changed_files_of_the_same_size_is_made_anew(tree):
    root, _ = tree
    one, two = root / "val/images/val_1.JPEG", root / "val/images/val_2.JPEG"
    size = max(one.stat().st_size, two.stat().st_size)
    for path in (one, two):
        path.write_bytes(path.read_bytes().ljust(size, b"\0"))  # a decoder ignores what follows the image
    before = tinyimagenet.load(root.parent)[1]
    content = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(content)
    after = tinyimagenet.load(root.parent)[1]
    assert torch.equal(before.images[1], after.images[2]) and torch.equal(before.images[2], after.images[1])


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b[:200],
        lambda b: b"",
        lambda b: b[:3000] + bytes([b[3000] ^ 1]) + b[3001:],
    ],
    ids=["cut", "empty", "one bit"],
)
def test_a_damaged_cache_is_made_anew_with_a_warning(tree, damage):
    root, _ = tree
    first = tinyimagenet.load(root.parent)
    (root / CACHE).write_bytes(damage((root / CACHE).read_bytes()))
    with pytest.warns(UserWarning, match="a damaged cache"):
        again = tinyimagenet.load(root.parent)
    assert torch.equal(first[0].images, again[0].images)
    tinyimagenet.load(root.parent)  # whole again: no warning


@pytest.mark.filterwarnings("error")
def test_a_cache_is_no_pickle(tree):
    root, _ = tree
    tinyimagenet.load(root.parent)
    with np.load(root / CACHE, allow_pickle=False) as file:
        assert set(file.files) == {"made_of", "train_pixels", "train_labels", "test_pixels", "test_labels"}
        assert file["train_pixels"].shape == (6, 3, 64, 64) and file["train_pixels"].dtype == np.uint8


def test_without_room_for_a_cache_the_images_are_there_all_the_same(tree, monkeypatch):
    root, _ = tree

    def full(*arguments, **arrays):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.warns(UserWarning, match="could not be written .No space left on device."):
        assert len(tinyimagenet.load(root.parent)[0]) == 6
    assert not any("cache" in p.name for p in root.iterdir())


# ---- what is wrong is named ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, change, words",
    [
        ("wnids.txt", lambda p: p.unlink(), "must be the list of Tiny ImageNet's classes .*; got no such file"),
        ("wnids.txt", lambda p: p.write_text("n01443537\nn02124075\n"), "got 2 different lines of 2"),
        ("wnids.txt", lambda p: p.write_text("../up\nn01443537\nn02124075\n"), "must be the list"),
        ("val/val_annotations.txt", lambda p: p.unlink(), "must be Tiny ImageNet's annotations .* got no such file"),
        ("val/val_annotations.txt", lambda p: p.write_text("val_0.JPEG\tn01443537\n"), "got 1 lines"),
        (
            "val/val_annotations.txt",
            lambda p: p.write_text(p.read_text().replace("n03444034", "n00000000")),
            r"'val_1.JPEG\\tn00000000.*' in line 2",
        ),
        ("val/val_annotations.txt", lambda p: p.write_text(p.read_text().replace("val_1", "../val_1")), "in line 2"),
        ("val/val_annotations.txt", lambda p: p.write_text(p.read_text().replace("val_1", "val_0")), "in line 2"),
        (
            "train/n02124075/images/n02124075_1.JPEG",
            lambda p: p.unlink(),
            "must be a JPEG image of Tiny ImageNet; got no such file",
        ),
        ("val/images/val_3.JPEG", lambda p: p.unlink(), "got no such file"),
        (
            "val/images/val_3.JPEG",
            lambda p: p.write_bytes(b""),
            "must be a JPEG image of 64x64 pixels; got a damaged image",
        ),
        ("val/images/val_3.JPEG", lambda p: p.write_bytes(p.read_bytes()[:-300]), "got a damaged image .*[Tt]runcated"),
        ("val/images/val_3.JPEG", lambda p: Image.new("RGB", (64, 64)).save(p, "PNG"), "got a damaged image"),
        ("val/images/val_3.JPEG", lambda p: Image.new("RGB", (64, 32)).save(p, "JPEG"), "got 64x32"),
    ],
)
def test_a_missing_or_damaged_file_is_named(tree, name, change, words):
    root, _ = tree
    change(root / name)
    with pytest.raises(
        (ValueError, FileNotFoundError), match=re.escape(str(root / name)) + f": .*{words}.*nft-ext fetch tinyimagenet"
    ):
        tinyimagenet.load(root.parent)
    assert not (root / CACHE).exists()


def test_without_pillow_the_message_says_what_to_install(tree, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(ImportError, match="tinyimagenet: needs Pillow to decode its images: pip install pillow"):
        tinyimagenet.load(tree[0].parent)


def test_other_sizes_are_refused(tree):
    with pytest.raises(ValueError, match="size: must be 32 or 64; got 48"):
        tinyimagenet.load(tree[0].parent, 48)
