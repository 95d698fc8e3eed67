"""slice_images="auto": a few chips on the same images show how variable chips and images are, a few passes what they
cost.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy import ndarray

from nft_ext.montecarlo.execution.cost import Cost, measure
from nft_ext.montecarlo.execution.passes import ROWS

# B2 is then known within some 30 % and n*, its inverse root, within 15 %, which costs a percent: the optimum is flat.
# More images than X2 / B2 tell no more of B2: where chips differ much, the first few images are enough, and the rest
# would cost more than they save.
PILOT_CHIPS = 24
PILOT_IMAGES = (64, 256)
PILOT_CHIPS_A_PASS = 8  # of the passes that are timed: slices are small, so chips share a pass


@dataclass(frozen=True)
class Components:
    """Variance components of correctness (docs/reference/monte_carlo.md): accuracy th, B2 of chips on all images, X2, P2."""

    accuracy: float
    between: float
    interaction: float
    images: float


def components(correct: ndarray, images: int) -> Components:
    """From `correct` bool [C, i]: C chips on the same i >= 2 images, drawn at random from `images`.

    On these i images: V from the per-image shares, and the variance over chips v of a chip's share, both unbiased; then
    X2 = i/(i-1) (V - v), and B2 = v - (1/i - 1/I) X2 for the chips' variance on all I images.
    """
    chips, few = correct.shape
    share = correct.mean(axis=0)
    by_image = chips / (chips - 1) * float(np.mean(share * (1 - share)))
    by_chip = float(np.var(correct.mean(axis=1), ddof=1))
    accuracy = float(share.mean())
    interaction = max(0.0, few / (few - 1) * (by_image - by_chip))
    return Components(
        accuracy=accuracy,
        between=max(0.0, by_chip - (1 / few - 1 / images) * interaction),
        interaction=interaction,
        images=max(0.0, few / (few - 1) * (accuracy * (1 - accuracy) + by_chip / chips - by_image)),
    )


def best_slice(found: Components, chip_in_images: float, images: int) -> int:
    """n* = sqrt((c_p / c_i) X2 / (B2 - X2 / I)), the least cost of a given variance B2 + (1/n - 1/I) X2; within 2 .. I.

    chip_in_images: c_p / c_i, what a chip costs once in units of one more image. All images where B2 <= X2 / I: then
    images differ more by chance than chips do, and more chips do not help. At least 2, since one image a chip does not
    tell chips' variance from images'.
    """
    excess = found.between - found.interaction / images
    if excess <= 0:
        return images
    return int(min(images, max(2, round(math.sqrt(chip_in_images * found.interaction / excess)))))


@dataclass(frozen=True)
class Pilot:
    """What decided the size of slices, for the report."""

    components: Components
    cost: Cost
    chips_a_pass: int
    chips: int
    images: int
    best: int

    def to_dict(self) -> dict[str, Any]:
        """For JSON: variances by their names in docs/reference/monte_carlo.md, costs in seconds."""
        c = self.components
        return {
            "chips": self.chips,
            "images": self.images,
            "accuracy": c.accuracy,
            "B2": c.between,
            "X2": c.interaction,
            "P2": c.images,
            "seconds_a_chip": self.cost.per_chip(self.chips_a_pass),
            "seconds_an_image": self.cost.image,
            "n_star": self.best,
        }


def pilot(evaluator, several: bool) -> Pilot:
    """Of a `ChipEvaluator`; several: whether chips may share a pass.

    The chips are of the key domain "selection" and the images the first of the last permutation: neither is evaluated.
    """
    images = len(evaluator.labels)
    few, more = (min(count, images) for count in PILOT_IMAGES)
    correct = evaluator.pilot_correct(PILOT_CHIPS, 0, few)
    found = components(correct, images)
    if found.between * few < found.interaction and more > few:
        correct = np.concatenate([correct, evaluator.pilot_correct(PILOT_CHIPS, few, more)], axis=1)
        found = components(correct, images)
    together = PILOT_CHIPS_A_PASS if several else 1
    each = max(2, min(images, evaluator.batch_size, ROWS.get(evaluator.device.type, ROWS["cpu"]) // (2 * together)))
    cost = measure(evaluator.pilot_pass, together, each, several)
    # Below a thousandth of a pass an image's time is not to be told from none, and the ratio of nothing.
    cost = replace(cost, image=max(cost.image, 1e-3 * cost.forward(together, each) / (together * each)))
    best = best_slice(found, cost.per_chip(together) / cost.image, images)
    return Pilot(found, cost, together, *correct.shape, best)
