"""Populations of chips and images with known figures: synthetic, or a recorded matrix of right answers."""

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
        loss = 0.0
        for g in self._factor():
            margin = self.mu[:, None] + self.tau * g - eps
            loss += float(np.where(margin > 0, np.log1p(np.exp(-np.abs(margin))), 0.0).mean())
        by_chip = rate.mean(axis=1)
        std = np.sqrt(by_chip.var() + (rate * (1 - rate)).mean() / self.images)
        return {"accuracy": float(rate.mean()), "ekl": loss / GRID / float(rate.mean()), "std": float(std)}

    def sums(self, random: np.random.Generator, images: ndarray, counted: ndarray) -> tuple[ndarray, ndarray]:
        """Right images and their loss, [R] each, of R new chips on the images [R, n]."""
        g = random.standard_normal(len(images)) if not self.skewed else 1 - random.standard_exponential(len(images))
        margin = (self.mu[images] + self.tau * g[:, None]).astype(np.float32)
        margin -= random.standard_normal(images.shape, dtype=np.float32)
        right = (margin > 0) & counted
        return right.sum(axis=1), np.where(right, np.log1p(np.exp(-np.abs(margin))), 0.0).sum(axis=1)


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

    def sums(self, random: np.random.Generator, images: ndarray, counted: ndarray) -> tuple[ndarray, ndarray]:
        """Right images of R chips, and no losses (zeros)."""
        chips = random.integers(len(self.correct), size=len(images))
        return (self.correct[chips[:, None], images] & counted).sum(axis=1), np.zeros(len(images))
