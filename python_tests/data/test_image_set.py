"""ImageSet and the validation split: what a set promises, and what it refuses."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from nft_ext.data import ImageSet, split_validation


def images_of(labels, num_classes=10, name="toy/train"):
    """A set whose image i is the constant i, so that every image can be told."""
    n = len(labels)
    images = torch.arange(n, dtype=torch.float32).view(n, 1, 1, 1).expand(n, 1, 2, 2).contiguous()
    return ImageSet(name, images, torch.tensor(labels), num_classes, mean=[0.5], std=[0.25])


def identities(images):
    return images.images[:, 0, 0, 0].long()


# ---- ImageSet -----------------------------------------------------------------------------------------------------


def test_items_length_and_description():
    toy = images_of([3, 1, 4])
    image, label = toy[2]
    assert (len(toy), image.shape, label, type(label), toy.channels) == (3, (1, 2, 2), 4, int, 1)
    assert repr(toy) == "ImageSet('toy/train', 3 images of 1x2x2, 10 classes, mean (0.5), std (0.25))"
    assert [label for _, label in toy] == [3, 1, 4]  # iteration ends


def test_a_data_loader_takes_it():
    toy = images_of([3, 1, 4, 1, 5])
    batches = list(DataLoader(toy, batch_size=2))
    assert torch.equal(torch.cat([x for x, _ in batches]), toy.images)
    assert torch.equal(torch.cat([y for _, y in batches]), toy.labels)
    assert batches[0][1].dtype == torch.int64


def test_tensors_are_kept_not_copied():
    images, labels = torch.zeros(4, 3, 5, 5), torch.zeros(4, dtype=torch.int64)
    kept = ImageSet("mine", images, labels, 1)
    assert kept.images is images and kept.labels is labels
    assert (kept.mean, kept.std) == ((0.0,) * 3, (1.0,) * 3)


@pytest.mark.parametrize("indices", [[4, 0, 0], torch.tensor([4, 0, 0]), np.array([4, 0, 0], np.int32)])
def test_a_subset_keeps_order_repeats_classes_and_normalisation(indices):
    part = images_of([3, 1, 4, 1, 5]).subset(indices)
    assert identities(part).tolist() == [4, 0, 0] and part.labels.tolist() == [5, 3, 3]
    assert (part.num_classes, part.mean, part.std, part.name) == (10, (0.5,), (0.25,), "toy/train")
    assert images_of([1]).subset(range(1), name="other").name == "other"


@pytest.mark.parametrize(
    "indices, kind, message",
    [
        ([], ValueError, "indices: must name at least one image; got none"),
        ([0, 3], ValueError, "indices: must be in 0..2; got 3"),
        ([-1], ValueError, "indices: must be in 0..2; got -1"),
        ([[0, 1]], ValueError, "indices: must have one dimension"),
        ([0.0], TypeError, "indices: must be integers; got float64"),
        (torch.tensor([True, False, True]), TypeError, "indices: must be integers; got bool"),
    ],
)
def test_wrong_indices_are_refused(indices, kind, message):
    with pytest.raises(kind, match=message):
        images_of([3, 1, 4]).subset(indices)


IMAGES, LABELS = torch.zeros(3, 1, 2, 2), torch.tensor([0, 1, 2])
NAN = torch.tensor([0.0, 1.0, torch.nan]).view(3, 1, 1, 1)
INF = torch.tensor([0.0, -torch.inf, 1.0]).view(3, 1, 1, 1)


@pytest.mark.parametrize(
    "arguments, kind, message",
    [
        ((IMAGES.numpy(), LABELS, 3), TypeError, r"images: must be a tensor \[n, C, H, W\] of float32; got ndarray"),
        ((IMAGES.double(), LABELS, 3), TypeError, r"images: must be a tensor .* of float32; got torch.float64"),
        ((IMAGES[:, 0], LABELS, 3), ValueError, r"images: must be a tensor .* of float32; got shape \[3, 2, 2\]"),
        ((IMAGES[:0], LABELS[:0], 3), ValueError, "images: must hold at least one image"),
        ((IMAGES, LABELS.int(), 3), TypeError, r"labels: must be a tensor \[n\] of int64; got torch.int32"),
        ((IMAGES, LABELS[:, None], 3), ValueError, r"labels: must be a tensor \[n\] of int64; got shape \[3, 1\]"),
        ((IMAGES, LABELS[:2], 3), ValueError, "labels: must hold one label for each of the 3 images; got 2 labels"),
        ((IMAGES, LABELS, 2), ValueError, r"labels: must be in 0..1 \(num_classes 2\); got 2 at index 2"),
        ((IMAGES, LABELS - 1, 3), ValueError, r"labels: must be in 0..2 \(num_classes 3\); got -1 at index 0"),
        ((IMAGES, LABELS, 0), ValueError, "num_classes: must be an integer >= 1; got 0"),
        ((NAN, LABELS, 3), ValueError, "images: must be finite; got NaN or infinity in image 2"),
        ((INF, LABELS, 3), ValueError, "images: must be finite; got NaN or infinity in image 1"),
        ((IMAGES, LABELS, 3, [0.1, 0.2]), ValueError, "mean: must hold one number for each of the 1 channels"),
        ((IMAGES, LABELS, 3, [0.1], [0.0]), ValueError, "std: must be > 0 in every channel"),
    ],
)
def test_the_constructor_refuses_what_is_not_a_labelled_set(arguments, kind, message):
    with pytest.raises(kind, match=message):
        ImageSet("mine", *arguments)


# ---- the validation split -----------------------------------------------------------------------------------------


def test_the_parts_are_disjoint_complete_and_in_order():
    toy = images_of([0, 1, 2, 3] * 25)
    train, validation = split_validation(toy, 0.2)
    ids = [identities(part) for part in (train, validation)]
    assert all((part.diff() > 0).all() for part in ids)
    assert torch.cat(ids).sort().values.tolist() == list(range(100))
    assert all(torch.equal(toy.labels[i], part.labels) for i, part in zip(ids, (train, validation), strict=True))
    assert (train.name, validation.name, validation.mean) == ("toy/train", "toy/validation", (0.5,))


@pytest.mark.parametrize(
    "counts, fraction, taken",
    [
        ([50, 30, 20], 0.1, [5, 3, 2]),
        ([55, 34, 11], 0.1, [6, 3, 1]),  # 5.5, 3.4, 1.1: the total is 10, the one left goes to the largest remainder
        ([15, 15, 10], 0.1, [2, 1, 1]),  # a tie goes to the lower class
        ([100, 1, 1], 0.5, [50, 0, 0]),  # a class with one image keeps it
        ([10, 0, 10], 0.9, [9, 0, 9]),
    ],
)
def test_every_class_gives_its_share(counts, fraction, taken):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts)).tolist()
    _, validation = split_validation(images_of(labels, num_classes=len(counts)), fraction)
    assert validation.labels.bincount(minlength=len(counts)).tolist() == taken


def test_the_choice_depends_on_the_seed_alone():
    toy = images_of([0, 1] * 50)
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002  (the state that users may have set)
    first = identities(split_validation(toy, seed=5)[1])
    assert torch.equal(first, identities(split_validation(toy, seed=5)[1]))
    others = [identities(split_validation(toy, seed=seed)[1]) for seed in (0, 6, 5 + 2**32)]
    assert not any(torch.equal(first, other) for other in others)


def test_the_choice_never_changes():
    """Else a later version would evaluate a stored checkpoint on validation images it was trained on."""
    _, validation = split_validation(images_of([0, 1] * 20), 0.2, seed=0)
    assert identities(validation).tolist() == [4, 6, 13, 15, 20, 27, 32, 37]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"fraction": 0.0}, "fraction: must be > 0 and < 1; got 0.0"),
        ({"fraction": 1.0}, "fraction: must be > 0 and < 1; got 1.0"),
        ({"fraction": float("nan")}, "fraction: must be a finite number; got nan"),
        ({"fraction": 0.01}, "fraction: must leave at least one of 3 images for validation; got 0.01"),
        ({"seed": -1}, r"seed: must be an integer in 0..18446744073709551615; got -1"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        split_validation(images_of([0, 1, 2]), **arguments)
