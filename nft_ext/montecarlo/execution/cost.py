"""What noisy inference costs here: a forward pass of S chips with b images each takes overhead + S chip + S b image
seconds.

`chip` is programming a chip's weights, `image` one more image through it, `overhead` what a pass costs whatever is in
it. The three are fitted to passes that were timed (docs/performance.md holds the model against whole evaluations).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from nft_ext._common.checks import fail

REPEATS = 3  # timed passes of a shape; the median counts
ENOUGH = 2.0  # seconds a shape, after which one timed pass is enough
EMPHASIS = 4.0  # weight of the first shape, the one that the work will consist of

# (chips, images each) of a pass
Shape = tuple[int, int]


@dataclass(frozen=True)
class Cost:
    """What passes cost on a machine, in seconds.

    Attributes:
        overhead: of a pass, whatever is in it.
        chip: of programming one chip in it.
        image: of one image through one chip.
        misfit: the largest relative error of a timed pass.
    """

    overhead: float
    chip: float
    image: float
    misfit: float = 0.0

    def forward(self, chips: int, images: int) -> float:
        """Seconds of one pass of `chips` chips with `images` images each."""
        return self.overhead + chips * (self.chip + images * self.image)

    def per_chip(self, chips: int) -> float:
        """Seconds that a chip costs once, where `chips` share a pass."""
        return self.chip + self.overhead / chips


def fit(shapes: Sequence[Shape], seconds: Sequence[float], weights: Sequence[float] | None = None) -> Cost:
    """Least squares of the relative errors over costs >= 0.

    Where the shapes do not tell the terms apart (all of one chip, say), the terms share what they cannot share out, and
    `forward` is right for shapes like these. Raises ValueError without a shape.
    """
    if not shapes:
        fail("shapes", "must name at least one pass", "none")
    terms = np.array([[1.0, chips, chips * images] for chips, images in shapes])
    times = np.asarray(seconds, dtype=float)
    root = np.sqrt(np.ones(len(times)) if weights is None else np.asarray(weights, dtype=float))
    relative = terms / times[:, None]
    best, least = np.zeros(3), np.inf
    # Costs are not negative: of every choice of terms that take part, the best fit without a negative one.
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
    """Passes whose times tell the three costs apart, near `chips` with `images` each, which comes first.

    several: whether chips may share a pass.
    """
    few = max(1, images // 4)
    more = chips if chips > 1 else 4
    wanted = [(chips, images), (1, few), (1, images)] + ([(more, few)] if several else [(1, 1)])
    return list(dict.fromkeys(wanted))


def measure(run: Callable[[int, int], None], chips: int, images: int, several: bool) -> Cost:
    """Times run(S, b), a pass of S chips with b images each, near S = `chips` and b = `images`, and fits."""
    shapes = shapes_for(chips, images, several)
    seconds = [_median(run, shape) for shape in shapes]
    return fit(shapes, seconds, [EMPHASIS] + [1.0] * (len(shapes) - 1))


def _median(run: Callable[[int, int], None], shape: Shape) -> float:
    run(*shape)  # the first pass of a shape allocates
    times: list[float] = []
    while len(times) < REPEATS and sum(times) < ENOUGH:
        started = time.perf_counter()
        run(*shape)
        times.append(time.perf_counter() - started)
    return float(np.median(times))
