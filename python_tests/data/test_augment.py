"""Augmentation of a batch is, image by image, a crop of the padded image and a flip; its draws follow torch's seed."""

import pytest
import torch

from nft_ext import data
from nft_ext.data import ImageSet, augment_for
from nft_ext.data.augment import CropFlip, crop_flip


def one_by_one(images, padding, fill, top, left, flipped):
    """The definition: pad, crop, flip, an image at a time."""
    batch, channels, height, width = images.shape
    out = torch.empty_like(images)
    for b in range(batch):
        padded = fill[0].to(images.dtype).expand(channels, height + 2 * padding, width + 2 * padding).clone()
        padded[:, padding : padding + height, padding : padding + width] = images[b]
        crop = padded[:, top[b] : top[b] + height, left[b] : left[b] + width]
        out[b] = crop.flip(2) if flipped[b] else crop
    return out


def batch(dtype, shape=(200, 3, 8, 6)):
    generator = torch.Generator().manual_seed(0)
    if dtype == torch.uint8:
        return torch.randint(0, 256, shape, dtype=dtype, generator=generator)
    return torch.randn(shape, generator=generator).to(dtype)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("padding", [0, 1, 4])
@pytest.mark.parametrize("channels_last", [False, True])
def test_every_crop_and_flip_is_exact(dtype, padding, channels_last):
    images = batch(dtype)
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    generator = torch.Generator().manual_seed(1)
    top, left = torch.randint(0, 2 * padding + 1, (2, 200), generator=generator)
    flipped = torch.randint(0, 2, (200,), generator=generator)
    fill = torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1)
    found = crop_flip(images, padding, fill, top, left, flipped)
    assert found.dtype == dtype and torch.equal(found, one_by_one(images, padding, fill, top, left, flipped))


def test_the_call_is_crop_flip_at_places_from_the_generator():
    images = batch(torch.float32)
    torch.manual_seed(5)
    top, left = torch.randint(0, 9, (2, 200))
    flipped = torch.randint(0, 2, (200,))
    torch.manual_seed(5)
    found = CropFlip(4, 0.5)(images)
    assert torch.equal(found, one_by_one(images, 4, torch.tensor(0.5).view(1, 1, 1, 1), top, left, flipped))


def test_a_seed_gives_the_same_crops_and_the_next_batch_others():
    images, augment = batch(torch.float32), CropFlip()
    runs = []
    for _ in range(2):
        torch.manual_seed(7)
        runs.append((augment(images), augment(images)))
    assert torch.equal(runs[0][0], runs[1][0]) and torch.equal(runs[0][1], runs[1][1])
    assert not torch.equal(runs[0][0], runs[0][1])


def test_only_torchs_generator_is_drawn_from_and_an_own_one_leaves_it_alone():
    images = batch(torch.float32)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    own = CropFlip(generator=torch.Generator().manual_seed(3))(images)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(own, CropFlip()(images))


def test_all_places_and_both_directions_are_equally_likely():
    n = 20_000
    images = torch.arange(4.0).view(1, 1, 2, 2).repeat(n, 1, 1, 1) + 1
    torch.manual_seed(0)
    found = CropFlip(1, 0.0)(images).view(n, 4)
    kinds, counts = found.unique(dim=0, return_counts=True)
    assert len(kinds) == 3 * 3 * 2
    assert ((counts - n / 18).abs() < 5 * (n / 18) ** 0.5).all()


def test_flip_off_and_no_padding_change_nothing():
    images = batch(torch.float32)
    assert torch.equal(CropFlip(0, flip=False)(images), images)


def image_set(name, mean=(0.5, 0.25, 0.75), std=(0.25, 0.5, 1.0)):
    black = (0 - torch.tensor(mean)) / torch.tensor(std)
    return ImageSet(name, black.view(1, 3, 1, 1).repeat(6, 1, 4, 4), torch.zeros(6, dtype=torch.int64), 2, mean, std)


@pytest.mark.parametrize("name", ["cifar10/train", "cifar100/train", "cifar10", "tinyimagenet/train"])
def test_photographs_are_padded_with_black(name):
    black = image_set(name)
    assert torch.equal(augment_for(black)(black.images), black.images)  # a black image stays black all over


def test_the_rest_is_not_augmented():
    digits, _ = data.load("digits") if pytest.importorskip("sklearn", reason="digits come with scikit-learn") else None
    assert augment_for(digits) is None and augment_for(image_set("mnist/train")) is None


def test_a_split_keeps_its_augmentation():
    train = image_set("cifar10/train")
    assert augment_for(train.subset([0, 1])) is not None


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="padding: must be an integer >= 0"):
        CropFlip(-1)
    with pytest.raises(ValueError, match=r"images: must have shape \[B, 3, H, W\]; got shape \[2, 1, 4, 4\]"):
        CropFlip(1, [0, 0, 0])(torch.zeros(2, 1, 4, 4))
    with pytest.raises(TypeError, match="train: must be an ImageSet"):
        augment_for(torch.zeros(2, 3, 4, 4))


@pytest.mark.cuda
def test_cuda_gives_the_same_crops():
    images, augment = batch(torch.float32), CropFlip(4, [0.1, 0.2, 0.3])
    torch.manual_seed(0)
    here = augment(images)
    torch.manual_seed(0)
    there = augment(images.cuda())
    assert there.is_cuda and torch.equal(there.cpu(), here)


def test_train_augments_cifar_by_default_and_not_on_request(tmp_path, monkeypatch):
    """The command hands `fit` the set's augmentation, or none."""
    from nft_ext import training
    from nft_ext.cli import main

    class Stop(Exception):
        pass

    handed = []

    def fit(*args, augment=None, **kwargs):
        handed.append(augment)
        raise Stop

    large = ImageSet("cifar10/train", torch.zeros(40, 3, 32, 32), torch.arange(40) % 2, 2)
    monkeypatch.setattr(data, "load", lambda name, folder, normalisation: (large, large))
    monkeypatch.setattr(training, "fit", fit)
    for options in ([], ["--augment", "none"]):
        with pytest.raises(Stop):
            main(["train", str(tmp_path / "x.safetensors"), "--dataset", "cifar10", "--width", "0.0625", *options])
    assert isinstance(handed[0], CropFlip) and handed[1] is None
