"""Splits a validation set off a training set. It chooses the best epoch, so the test set stays unseen."""

from __future__ import annotations

import numpy as np
import torch

from nft_ext._common.checks import fail, instance, integer, number
from nft_ext.data.image_set import ImageSet


def split_validation(train: ImageSet, fraction: float = 0.1, seed: int = 0) -> tuple[ImageSet, ImageSet]:
    """Splits `train` into (training, validation), disjoint, stratified by class and in the original order.

    Every class gives `fraction` of its images, rounded so that the total is round(fraction * n). Every class keeps at
    least one image for training, which can lower the total. The choice depends only on labels and `seed`, on every
    machine and with every version of NumPy (its RandomState is frozen).

    Args:
        train: n images.
        fraction: share of the images for validation, in (0, 1).
        seed: an integer in 0 .. 2^64 - 1.

    Returns:
        Two ImageSets with copies of the images.

    Raises:
        TypeError: train is not an ImageSet.
        ValueError: an argument is out of range, or no image is left for validation.
    """
    instance("train", train, ImageSet, "an ImageSet")
    fraction = number("fraction", fraction)
    if not 0.0 < fraction < 1.0:
        fail("fraction", "must be > 0 and < 1", fraction)
    seed = integer("seed", seed, 0, 2**64 - 1)
    labels = train.labels.cpu().numpy()
    counts = np.bincount(labels, minlength=train.num_classes)
    taken = _quotas(counts, fraction)
    if taken.sum() == 0:
        fail("fraction", f"must leave at least one of {len(train)} images for validation", fraction)
    random = np.random.RandomState([seed & 0xFFFFFFFF, seed >> 32])
    validates = np.zeros(len(labels), bool)
    for label, count in enumerate(taken):
        validates[random.permutation(np.flatnonzero(labels == label))[:count]] = True
    pick = [torch.from_numpy(np.flatnonzero(mask)) for mask in (~validates, validates)]
    return train.subset(pick[0]), train.subset(pick[1], name=f"{train.name.removesuffix('/train')}/validation")


def _quotas(counts: np.ndarray, fraction: float) -> np.ndarray:
    """Validation images per class by the largest-remainder rule. Ties go to the lower class."""
    exact = counts * fraction
    taken = np.floor(exact).astype(np.int64)
    left = round(float(counts.sum()) * fraction) - int(taken.sum())
    taken[np.argsort(taken - exact, kind="stable")[:left]] += 1
    return np.minimum(taken, np.maximum(counts - 1, 0))
