"""Populations of chips and images with known figures: synthetic, of several kinds of chips, or a recorded matrix.

`sums` draws chips: right images and their loss per chip, and the number of the chip's kind. `truth_of` gives the true
figures over the chips of some kinds, and the share of all other chips.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy import ndarray
from scipy.special import ndtr
from scipy.stats import norm

GRID = 400  # quantiles of the chip factor and of an image's noise, for the integrals of the true figures


@dataclass(frozen=True)
class Synthetic:
    """Chip c is right on image i where margin = mu_i + tau g_c - eps_ci > 0, eps standard normal, mu ~ N(shift, 1.5^2).

    g is standard normal, or with skewed=True 1 - e, e exponential: few chips fail badly, as under strong noise.
    The loss of an image that is right is log(1 + exp(-margin)). shift is found so that the mean accuracy is `accuracy`.
    """

    images: int
    accuracy: float
    tau: float
    skewed: bool = False

    @functools.cached_property
    def mu(self) -> ndarray:
        """mu_i [I]: how easy each image is."""
        spread = np.random.default_rng(self.images).normal(0, 1.5, self.images)
        low, high = -20.0, 20.0
        while high - low > 1e-12:
            middle = (low + high) / 2
            low, high = (middle, high) if self._rate(spread + middle).mean() < self.accuracy else (low, middle)
        return spread + low

    def _factor(self) -> ndarray:
        """Equally likely values of g, [GRID]."""
        p = (np.arange(GRID) + 0.5) / GRID
        return 1 + np.log1p(-p) if self.skewed else norm.ppf(p)

    def _rate(self, mu: ndarray) -> ndarray:
        """P(right), [GRID, I]: by chip factor and image."""
        return ndtr(mu + self.tau * self._factor()[:, None])

    @functools.cached_property
    def truth(self) -> dict[str, float]:
        """Mean accuracy, EKL, and the std over chips of the accuracy on all images."""
        rate = self._rate(self.mu)
        eps = norm.ppf((np.arange(GRID) + 0.5) / GRID)
        ease = np.linspace(-40, 40, 16_001)  # of an image on a chip, mu + tau g
        margin = ease[:, None] - eps
        expected = np.where(margin > 0, np.log1p(np.exp(-np.abs(margin))), 0.0).mean(axis=1)
        loss = np.interp(self.mu + self.tau * self._factor()[:, None], ease, expected).mean()
        by_chip = rate.mean(axis=1)
        std = np.sqrt(by_chip.var() + (rate * (1 - rate)).mean() / self.images)
        return {"accuracy": float(rate.mean()), "ekl": float(loss / rate.mean()), "std": float(std)}

    def truth_of(self, kinds: ndarray) -> dict[str, float]:
        """`truth`, as all chips are of one kind, and the share of unseen chips: 0."""
        return self.truth | {"unseen": 0.0}

    def sums(self, random: np.random.Generator, images: ndarray, counted: ndarray) -> tuple[ndarray, ndarray, ndarray]:
        """Right images, their loss and kind 0, [R] each, of R new chips on the images [R, n]."""
        g = random.standard_normal(len(images)) if not self.skewed else 1 - random.standard_exponential(len(images))
        margin = (self.mu[images] + self.tau * g[:, None]).astype(np.float32)
        margin -= random.standard_normal(images.shape, dtype=np.float32)
        right = (margin > 0) & counted
        loss = np.where(right, np.log1p(np.exp(-np.abs(margin))), 0.0).sum(axis=1)
        return right.sum(axis=1), loss, np.zeros(len(images), dtype=int)


@dataclass(frozen=True)
class Collapsed:
    """Each chip answers one class for every image, with loss 0.1 on right images. Image i has label i mod classes."""

    images: int
    classes: int = 10

    @functools.cached_property
    def truth(self) -> dict[str, float]:
        """Mean accuracy, EKL, and the std over chips of the accuracy on all images."""
        shares = np.bincount(np.arange(self.images) % self.classes, minlength=self.classes) / self.images
        return {"accuracy": 1 / self.classes, "ekl": 0.1, "std": float(shares.std())}

    def sums(self, random: np.random.Generator, images: ndarray, counted: ndarray) -> tuple[ndarray, ndarray, ndarray]:
        """As `Synthetic.sums`."""
        answers = random.integers(self.classes, size=len(images))
        right = ((images % self.classes == answers[:, None]) & counted).sum(axis=1)
        return right, 0.1 * right, np.zeros(len(images), dtype=int)


@dataclass(frozen=True)
class Mixture:
    """Chips of several kinds on the same images: (share of chips, population of the kind)."""

    kinds: tuple[tuple[float, Synthetic | Collapsed], ...]

    @property
    def images(self) -> int:
        return self.kinds[0][1].images

    @functools.cached_property
    def truth(self) -> dict[str, float]:
        """Mean accuracy, EKL, and the std over all chips of the accuracy on all images."""
        return self._of(range(len(self.kinds)))

    def truth_of(self, kinds: ndarray) -> dict[str, float]:
        """`truth` over the chips of `kinds` alone, and the share of all other chips."""
        seen = np.unique(kinds)
        return self._of(seen) | {"unseen": 1 - sum(self.kinds[kind][0] for kind in seen)}

    def _of(self, kinds) -> dict[str, float]:
        shares = np.array([self.kinds[kind][0] for kind in kinds])
        of = [self.kinds[kind][1].truth for kind in kinds]
        accuracy, ekl, std = (np.array([truth[name] for truth in of]) for name in ("accuracy", "ekl", "std"))
        shares = shares / shares.sum()
        mean = float(shares @ accuracy)
        spread = float(shares @ (std**2 + (accuracy - mean) ** 2))
        return {"accuracy": mean, "ekl": float(shares @ (accuracy * ekl)) / mean, "std": float(np.sqrt(spread))}

    def sums(self, random: np.random.Generator, images: ndarray, counted: ndarray) -> tuple[ndarray, ndarray, ndarray]:
        """As `Synthetic.sums`, with the kind of every chip."""
        kinds = random.choice(len(self.kinds), size=len(images), p=[share for share, _ in self.kinds])
        right, loss = np.zeros(len(images)), np.zeros(len(images))
        for kind in np.unique(kinds):
            mine = kinds == kind
            right[mine], loss[mine], _ = self.kinds[kind][1].sums(random, images[mine], counted[mine])
        return right, loss, kinds


@dataclass(frozen=True, eq=False)
class Recorded:
    """A real network's chips and images, `correct` bool [C, I]: a chip is a row, drawn with replacement."""

    correct: ndarray

    @property
    def images(self) -> int:
        return self.correct.shape[1]

    @functools.cached_property
    def truth(self) -> dict[str, float]:
        """Mean accuracy, and the std over chips."""
        return {"accuracy": float(self.correct.mean()), "std": float(self.correct.mean(axis=1).std())}

    def truth_of(self, kinds: ndarray) -> dict[str, float]:
        """`truth`, as all chips are of one kind, and the share of unseen chips: 0."""
        return self.truth | {"unseen": 0.0}

    def sums(self, random: np.random.Generator, images: ndarray, counted: ndarray) -> tuple[ndarray, ndarray, ndarray]:
        """Right images of R chips, no losses (zeros) and kind 0."""
        chips = random.integers(len(self.correct), size=len(images))
        right = (self.correct[chips[:, None], images] & counted).sum(axis=1)
        return right, np.zeros(len(images)), np.zeros(len(images), dtype=int)
