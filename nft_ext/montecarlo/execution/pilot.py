"""The pilot behind slice_images="auto": a few chips measure variances, a few timed passes measure costs."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy import ndarray

from nft_ext.montecarlo.execution.cost import Cost, measure
from nft_ext.montecarlo.execution.passes import ROWS

# 24 chips give B2 within about 30 % and n* within 15 %. The optimum is flat, so this costs about a percent of time.
# More than X2 / B2 images improve B2 no further, so the second number is used only if chips differ little.
PILOT_CHIPS = 24
PILOT_IMAGES = (64, 256)
PILOT_CHIPS_PER_PASS = 8  # in the timed passes; slices are small, so chips share a pass


@dataclass(frozen=True)
class Components:
    """Variance components of correctness, in the symbols of docs/reference/monte_carlo.md.

    Attributes:
        accuracy: mean accuracy.
        between: B2, variance over chips of the accuracy on all images.
        interaction: X2, of chips with images.
        images: P2, variance over images.
    """

    accuracy: float
    between: float
    interaction: float
    images: float


def components(correct: ndarray, images: int) -> Components:
    """Estimates the variance components from C chips on the same i images.

    V comes from the share of correct chips per image, v is the variance over chips of the accuracy on the i images.
    Both are unbiased. Then X2 = i/(i-1) (V - v), and B2 = v - (1/i - 1/I) X2 on all I images.

    Args:
        correct: bool [C, i], i >= 2, images drawn at random.
        images: I, images of the set.
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
    """The cheapest size of slices for a given variance: n* = sqrt((c_p / c_i) X2 / (B2 - X2 / I)), within 2 .. I.

    The variance per chip is B2 + (1/n - 1/I) X2. If B2 <= X2 / I, more chips do not help and n* is all images. n* is at
    least 2, because one image per chip cannot separate the variances of chips and images.

    Args:
        found: variance components.
        chip_in_images: c_p / c_i, the cost per chip in units of the cost per image.
        images: I, images of the set.
    """
    excess = found.between - found.interaction / images
    if excess <= 0:
        return images
    return int(min(images, max(2, round(math.sqrt(chip_in_images * found.interaction / excess)))))


@dataclass(frozen=True)
class Pilot:
    """The measurements that decided the size of slices, for the report."""

    components: Components
    cost: Cost
    chips_per_pass: int
    chips: int
    images: int
    best: int

    def to_dict(self) -> dict[str, Any]:
        """For JSON: variances by their symbols in docs/reference/monte_carlo.md, costs in seconds."""
        c = self.components
        return {
            "chips": self.chips,
            "images": self.images,
            "accuracy": c.accuracy,
            "B2": c.between,
            "X2": c.interaction,
            "P2": c.images,
            "seconds_a_chip": self.cost.per_chip(self.chips_per_pass),
            "seconds_an_image": self.cost.image,
            "n_star": self.best,
        }


def pilot(evaluator, several: bool) -> Pilot:
    """Runs the pilot of a `ChipEvaluator`. several: whether chips may share a pass.

    Its chips have the key domain "selection", so no evaluated chip takes part. Its images come from a permutation of
    its own.
    """
    images = len(evaluator.labels)
    few, more = (min(count, images) for count in PILOT_IMAGES)
    correct = evaluator.pilot_correct(PILOT_CHIPS, 0, few)
    found = components(correct, images)
    if found.between * few < found.interaction and more > few:
        correct = np.concatenate([correct, evaluator.pilot_correct(PILOT_CHIPS, few, more)], axis=1)
        found = components(correct, images)
    together = PILOT_CHIPS_PER_PASS if several else 1
    each = max(2, min(images, evaluator.batch_size, ROWS.get(evaluator.device.type, ROWS["cpu"]) // (2 * together)))
    cost = measure(evaluator.pilot_pass, together, each, several)
    # A time per image below a thousandth of a pass cannot be measured, and a ratio to 0 has no value.
    cost = replace(cost, image=max(cost.image, 1e-3 * cost.forward(together, each) / (together * each)))
    best = best_slice(found, cost.per_chip(together) / cost.image, images)
    chips, seen = correct.shape
    return Pilot(found, cost, together, chips, seen, best)
