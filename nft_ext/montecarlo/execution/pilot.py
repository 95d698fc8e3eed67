"""The pilot behind slice_images="auto": a few chips measure variances, a few timed passes measure costs."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy import ndarray

from nft_ext._common.checks import fail
from nft_ext.montecarlo.execution.cost import Cost, measure
from nft_ext.montecarlo.execution.passes import ROWS
from nft_ext.montecarlo.statistics.figure import Figure

# 24 chips give B2 within about 30 % and n* within 15 %. The optimum is flat, so this costs about a percent of time.
# More than X2 / B2 images improve B2 no further, so the second number is used only if chips differ little.
PILOT_CHIPS = 24
PILOT_IMAGES = (64, 256)
PILOT_CHIPS_PER_PASS = 8  # in the timed passes; slices are small, so chips share a pass


@dataclass(frozen=True)
class Components:
    """Variance components of a metric, in the symbols of docs/reference/monte_carlo.md.

    Attributes:
        mean: the metric's mean.
        between: B2, variance over chips of the metric on all images.
        interaction: X2, of chips with images.
        images: P2, variance over images.
    """

    mean: float
    between: float
    interaction: float
    images: float


def components(values: ndarray, images: int) -> Components:
    """Estimates the variance components from C chips on the same i images.

    V is the mean over images of the variance over chips, v the variance over chips of the mean on the i images. Both
    are unbiased. Then X2 = i/(i-1) (V - v), and B2 = v - (1/i - 1/I) X2 on all I images.

    Args:
        values: [C, i], i >= 2, of images drawn at random: whether right, or the metric's first-order change.
        images: I, images of the set.
    """
    values = np.asarray(values, dtype=np.float64)
    chips, few = values.shape
    by_image = float(np.mean(np.var(values, axis=0, ddof=1)))
    by_chip = float(np.var(values.mean(axis=1), ddof=1))
    mean = float(values.mean())
    interaction = max(0.0, few / (few - 1) * (by_image - by_chip))
    among = float(np.mean(np.square(values.mean(axis=0) - mean))) - by_image / chips
    return Components(
        mean=mean,
        between=max(0.0, by_chip - (1 / few - 1 / images) * interaction),
        interaction=interaction,
        images=max(0.0, few / (few - 1) * (among + by_chip / chips)),
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
    metric: str = "accuracy"
    items: float | None = 1.0

    def to_dict(self) -> dict[str, Any]:
        """For JSON: variances by their symbols in docs/reference/monte_carlo.md, costs in seconds."""
        c = self.components
        return {
            "chips": self.chips,
            "images": self.images,
            "metric": self.metric,
            "mean": c.mean,
            "items_an_image": self.items,
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
    images = len(evaluator.examples)
    few, more = (min(count, images) for count in PILOT_IMAGES)
    parts = evaluator.pilot_parts(PILOT_CHIPS, 0, few)
    figure = evaluator.task.figures[0]
    found = _components(figure, parts, images)
    if found.between * few < found.interaction and more > few:
        parts = np.concatenate([parts, evaluator.pilot_parts(PILOT_CHIPS, few, more)], axis=1)
        found = _components(figure, parts, images)
    together = PILOT_CHIPS_PER_PASS if several else 1
    each = max(2, min(images, evaluator.batch_size, ROWS.get(evaluator.device.type, ROWS["cpu"]) // (2 * together)))
    cost = measure(evaluator.pilot_pass, together, each, several)
    # A time per image below a thousandth of a pass cannot be measured, and a ratio to 0 has no value.
    cost = replace(cost, image=max(cost.image, 1e-3 * cost.forward(together, each) / (together * each)))
    best = best_slice(found, cost.per_chip(together) / cost.image, images)
    chips, seen, _ = parts.shape
    items = float(parts[..., 1].mean()) if figure.share else None
    return Pilot(found, cost, together, chips, seen, best, figure.name, items)


def _components(figure: Figure, parts: ndarray, images: int) -> Components:
    """Components of the first metric. parts: [C, i, K] of C chips and i images."""
    if figure.right_or_wrong:
        return components(parts[..., 0], images)
    changes = figure.linearised(parts)
    if not np.isfinite(changes).all():
        fail("slice_images", f"must be a number, because the pilot's images give {figure.name} no value", "auto")
    mean = float(figure.value(parts.reshape(-1, parts.shape[-1]).sum(axis=0)))
    return replace(components(changes, images), mean=mean)
