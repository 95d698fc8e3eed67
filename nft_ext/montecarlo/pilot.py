"""slice_images="auto": a few chips on the same images show how variable chips and images are, a few passes what they cost."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any, Callable

import numpy as np
from numpy import ndarray

# B2 is then known within some 30 % and n*, its inverse root, within 15 %, which costs a percent: the optimum is flat. More images
# than X2 / B2, a few hundred, tell no more of B2.
PILOT_CHIPS = 24
PILOT_IMAGES = 256
TIMINGS = 3  # passes of each size; the shortest counts


@dataclass(frozen=True)
class Components:
    """Variance components of correctness (docs/monte_carlo.md): accuracy th, B2 of chips on all images, X2, P2."""

    accuracy: float
    between: float
    interaction: float
    images: float


@dataclass(frozen=True)
class Costs:
    """Seconds to program a chip (and whatever else a chip costs once), and to run one more image through it."""

    chip: float
    image: float


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


def best_slice(found: Components, costs: Costs, images: int) -> int:
    """n* = sqrt((c_p / c_i) X2 / (B2 - X2 / I)), the least cost of a given variance B2 + (1/n - 1/I) X2; within 2 .. I.

    All images where B2 <= X2 / I: then images differ more by chance than chips do, and more chips do not help.
    At least 2, since one image a chip does not tell chips' variance from images'.
    """
    excess = found.between - found.interaction / images
    if excess <= 0:
        return images
    best = math.sqrt(costs.chip / costs.image * found.interaction / excess)
    return int(min(images, max(2, round(best))))


def measure_costs(seconds: Callable[[int, int], float], images: int, batch: int) -> Costs:
    """seconds(chips, n) runs a pass of chips with n images each. A line through two sizes of the same number of rows."""
    large = max(2, min(images, batch))
    small = max(1, large // 8)
    many = large // small
    for chips, n in ((1, large), (many, small)):
        seconds(chips, n)  # the first pass of a shape allocates
    at_large = min(seconds(1, large) for _ in range(TIMINGS))
    at_small = min(seconds(many, small) for _ in range(TIMINGS)) / many
    image = max((at_large - at_small) / (large - small), 1e-3 * at_large / large)
    return Costs(chip=max(at_small - small * image, 0.0), image=image)


@dataclass(frozen=True)
class Pilot:
    """What decided the size of slices, for the report."""

    components: Components
    costs: Costs
    chips: int
    images: int
    best: int

    def to_dict(self) -> dict[str, Any]:
        """For JSON: variances by their names in docs/monte_carlo.md, costs in seconds."""
        c = self.components
        return {
            "chips": self.chips, "images": self.images, "accuracy": c.accuracy, "B2": c.between, "X2": c.interaction,
            "P2": c.images, "seconds_a_chip": self.costs.chip, "seconds_an_image": self.costs.image, "n_star": self.best,
        }


def pilot(evaluator, several: bool) -> Pilot:
    """Of a `ChipEvaluator`; several: whether chips may share a pass.

    The chips are of the key domain "selection" and the images the first of the last permutation: neither is evaluated.
    """
    images = len(evaluator.labels)
    few = min(PILOT_IMAGES, images)
    found = components(evaluator.pilot_correct(PILOT_CHIPS, few), images)

    def seconds(chips: int, n: int) -> float:
        started = time.perf_counter()
        for first in range(0, chips, chips if several else 1):
            evaluator.pilot_pass(range(first, first + (chips if several else 1)), n)
        return time.perf_counter() - started

    costs = measure_costs(seconds, images, evaluator.batch_size)
    return Pilot(found, costs, PILOT_CHIPS, few, best_slice(found, costs, images))
