"""The cost model of noisy inference: a pass of S chips with b images each takes overhead + S chip + S b image seconds.

`chip` is the time to program a chip's weights, `image` the time per image and chip, `overhead` the fixed time per pass.
The three costs are fitted to timed passes.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from nft_ext._common.checks import fail

REPEATS = 3  # timed passes per shape; the median counts
ENOUGH = 2.0  # seconds per shape, after which no further pass is timed
EMPHASIS = 4.0  # weight of the first shape, which is that of the evaluation

# (chips, images per chip) of a pass
Shape = tuple[int, int]


@dataclass(frozen=True)
class Cost:
    """Costs of a pass on this machine, in seconds.

    Attributes:
        overhead: fixed time per pass.
        chip: time to program one chip.
        image: time per image and chip.
        misfit: largest relative error of the model over the timed passes.
    """

    overhead: float
    chip: float
    image: float
    misfit: float = 0.0

    def forward(self, chips: int, images: int) -> float:
        """Seconds of one pass of `chips` chips with `images` images each."""
        return self.overhead + chips * (self.chip + images * self.image)

    def per_chip(self, chips: int) -> float:
        """Seconds per chip without its images, if `chips` share a pass."""
        return self.chip + self.overhead / chips


def fit(shapes: Sequence[Shape], seconds: Sequence[float], weights: Sequence[float] | None = None) -> Cost:
    """Fits costs >= 0 by least squares of the relative errors.

    Some shapes cannot separate the terms, for example one chip in every pass. Then trust only `Cost.forward` for such
    shapes.

    Args:
        shapes: (chips, images per chip) of each timed pass.
        seconds: its time.
        weights: its weight; None: all 1.

    Raises:
        ValueError: no shape.
    """
    if not shapes:
        fail("shapes", "must name at least one pass", "none")
    terms = np.array([[1.0, chips, chips * images] for chips, images in shapes])
    times = np.asarray(seconds, dtype=float)
    root = np.sqrt(np.ones(len(times)) if weights is None else np.asarray(weights, dtype=float))
    relative = terms / times[:, None]
    best, least = np.zeros(3), np.inf
    # Costs must be >= 0: fits every subset of the terms, and keeps the best fit without a negative cost.
    for size in (3, 2, 1):
        for part in itertools.combinations(range(3), size):
            found = np.zeros(3)
            found[list(part)] = np.linalg.lstsq(relative[:, part] * root[:, None], root, rcond=1e-10)[0]
            error = float(np.sum((root * (relative @ found - 1)) ** 2))
            if (found >= 0).all() and error < least * (1 - 1e-9):
                best, least = found, error
    misfit = float(np.max(np.abs(relative @ best - 1)))
    return Cost(*(float(value) for value in best), misfit=misfit)


def shapes_for(chips: int, images: int, several: bool) -> list[Shape]:
    """Shapes of passes whose times separate the three costs. The first is (chips, images).

    several: whether chips may share a pass.
    """
    few = max(1, images // 4)
    more = chips if chips > 1 else 4
    wanted = [(chips, images), (1, few), (1, images)] + ([(more, few)] if several else [(1, 1)])
    return list(dict.fromkeys(wanted))


def measure(run: Callable[[int, int], None], chips: int, images: int, several: bool) -> Cost:
    """Times passes and fits their costs.

    Args:
        run: run(S, b) runs a pass of S chips with b images each.
        chips, images: the shape of the evaluation's passes; the timed passes are near it.
        several: whether chips may share a pass.
    """
    shapes = shapes_for(chips, images, several)
    seconds = [_median(run, shape) for shape in shapes]
    return fit(shapes, seconds, [EMPHASIS] + [1.0] * (len(shapes) - 1))


def _median(run: Callable[[int, int], None], shape: Shape) -> float:
    run(*shape)  # not timed: the first pass of a shape allocates memory
    times: list[float] = []
    while len(times) < REPEATS and sum(times) < ENOUGH:
        started = time.perf_counter()
        run(*shape)
        times.append(time.perf_counter() - started)
    return float(np.median(times))
