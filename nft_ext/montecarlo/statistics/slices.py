"""The images that each chip sees under the stratified protocol: slices of a permuted test set.

docs/reference/monte_carlo.md has the equations.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nft_ext import _core  # pyright: ignore[reportAttributeAccessIssue] (a compiled module)
from nft_ext.ops.keys import DOMAINS

LAST_PERMUTATION = 2**32 - 1  # of the pilot's images; no tiling reaches this number
TILINGS_PER_PERMUTATION = 2  # two chips see each slice; their difference measures the variance (slice_estimate.py)


@dataclass(frozen=True)
class Slices:
    """Slices of `images` images with at most `most` images per chip. A pure function of (seed, draw, images, most).

    A tiling is `count` slices that together hold every image once. Their sizes differ by at most one. Slice j holds the
    places floor(j * images / count) up to, not including, floor((j + 1) * images / count) of a permutation. Chip `draw`
    sees slice j = draw mod count of tiling t = draw // count. Tilings 2b and 2b + 1 use permutation b.
    """

    seed: int
    images: int
    most: int

    @property
    def count(self) -> int:
        """Slices per tiling, m."""
        return -(-self.images // self.most)

    @property
    def size(self) -> int:
        """Images of the largest slice, n; every slice has n or n - 1."""
        return -(-self.images // self.count)

    def of(self, draws: list[int]) -> tuple[Tensor, Tensor]:
        """Image numbers int64 [S, n] of the chips `draws`, and whether each counts, bool [S, n].

        A slice of n - 1 images repeats its first image at the end, so that all slices have one shape. The repeated
        image does not count.
        """
        tilings, j = np.divmod(np.array(draws, dtype=np.int64), self.count)
        first, last = j * self.images // self.count, (j + 1) * self.images // self.count
        places = first[:, None] + np.arange(self.size)  # [S, n]
        counted = places < last[:, None]
        places = np.where(counted, places, first[:, None])
        numbers = np.empty_like(places)
        for number in np.unique(tilings // TILINGS_PER_PERMUTATION):
            here = tilings // TILINGS_PER_PERMUTATION == number
            numbers[here] = permutation(self.seed, int(number), self.images)[places[here]]
        return torch.from_numpy(numbers), torch.from_numpy(counted)


@functools.lru_cache(maxsize=4)
def permutation(seed: int, number: int, images: int) -> np.ndarray:
    """Permutation `number` of 0 .. images - 1 under `seed`, int64 [images]: sorts by 64 random bits per image.

    The bits come from Philox with key domain "permutation", stream 0, slice 0 and draw = number. The four words of
    counter c are the bits of two images: words 0 (low half) and 1 of image 2c, words 2 and 3 of image 2c + 1. For
    equal bits the lower image comes first.
    """
    pairs = np.arange((images + 1) // 2, dtype=np.uint32)
    counters = np.zeros((len(pairs), 4), dtype=np.uint32)
    counters[:, 0], counters[:, 1], counters[:, 3] = pairs, DOMAINS["permutation"] << 24, number
    key = np.array([seed & 0xFFFFFFFF, seed >> 32], dtype=np.uint32)
    words = _core.philox(counters, key).astype(np.uint64).reshape(-1, 2)
    return np.argsort(words[:images, 0] | words[:images, 1] << np.uint64(32), kind="stable")
