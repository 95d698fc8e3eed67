"""Which images a chip sees under the stratified protocol: slices of a permuted test set (docs/reference/monte_carlo.md)."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nft_ext import _core
from nft_ext.ops.keys import DOMAINS

LAST_PERMUTATION = 2**32 - 1  # no tiling reaches it: pilots take their images there
TILINGS_A_PERMUTATION = 2  # each slice is shown to two chips, whose difference measures the variance (strata.py)


@dataclass(frozen=True)
class Slices:
    """The slices of `images` images, at most `most` a chip; all of it a pure function of (seed, draw, images, most).

    A tiling is `count` slices, as many as `most` demands, that hold every image once. Their sizes differ by at most
    one: slice j is the images from place floor(j * images / count) to before floor((j + 1) * images / count) of a
    permutation. Chip `draw` sees slice j = draw mod count of tiling t = draw // count, and tilings 2b and 2b + 1 are
    cut from permutation b.
    """

    seed: int
    images: int
    most: int

    @property
    def count(self) -> int:
        """Slices of a tiling, m."""
        return -(-self.images // self.most)

    @property
    def size(self) -> int:
        """Images of the largest slice, n; the others have n or n - 1."""
        return -(-self.images // self.count)

    def of(self, draws: list[int]) -> tuple[Tensor, Tensor]:
        """Image numbers int64 [S, n] of the chips `draws`, and whether they count, bool [S, n].

        A slice one short of n repeats its first image at the end, so that all have one shape; that one does not count.
        """
        tilings, j = np.divmod(np.array(draws, dtype=np.int64), self.count)
        first, last = j * self.images // self.count, (j + 1) * self.images // self.count
        places = first[:, None] + np.arange(self.size)  # [S, n]
        counted = places < last[:, None]
        places = np.where(counted, places, first[:, None])
        numbers = np.empty_like(places)
        for number in np.unique(tilings // TILINGS_A_PERMUTATION):
            here = tilings // TILINGS_A_PERMUTATION == number
            numbers[here] = permutation(self.seed, int(number), self.images)[places[here]]
        return torch.from_numpy(numbers), torch.from_numpy(counted)


@functools.lru_cache(maxsize=4)
def permutation(seed: int, number: int, images: int) -> np.ndarray:
    """Permutation `number` of 0 .. images - 1 under `seed`, int64 [images]: sorts 64 random bits an image.

    The bits are Philox's, key domain "permutation", stream 0, slice 0, draw = number: block b gives image 2b the words
    0 (low half) and 1, image 2b + 1 the words 2 and 3. Of equal bits the lower image goes first.
    """
    blocks = np.arange((images + 1) // 2, dtype=np.uint32)
    counters = np.zeros((len(blocks), 4), dtype=np.uint32)
    counters[:, 0], counters[:, 1], counters[:, 3] = blocks, DOMAINS["permutation"] << 24, number
    key = np.array([seed & 0xFFFFFFFF, seed >> 32], dtype=np.uint32)
    words = _core.philox(counters, key).astype(np.uint64).reshape(-1, 2)
    return np.argsort(words[:images, 0] | words[:images, 1] << np.uint64(32), kind="stable")
