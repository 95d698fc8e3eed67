"""The magnitudes that a converter meets, counted in narrow bins, so that one pass finds any percentile."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_DROPPED = 13  # low bits of a float32: a bin is 2^-10 of its values wide
_BINS = 1 << (31 - _DROPPED)


class Magnitudes:
    """Counts of |x|. The order of the values does not matter.

    Attributes:
        count: number of values.
        negative: whether a value was negative.
        finite: whether all values were finite.
        largest: the largest magnitude.
    """

    def __init__(self, device: torch.device) -> None:
        self._bins = torch.zeros(_BINS, dtype=torch.int64, device=device)
        self.count, self.negative, self.finite, self.largest = 0, False, True, 0.0

    def add(self, values: Tensor) -> None:
        """Counts the values of a tensor of any shape."""
        values = values.detach().float().flatten()
        if not values.numel():
            return
        low, high = (float(v) for v in torch.aminmax(values))
        if not (math.isfinite(low) and math.isfinite(high)):
            self.finite = False
            return
        self.count += values.numel()
        self.negative = self.negative or low < 0
        self.largest = max(self.largest, -low, high)
        self._bins += torch.bincount(values.abs().view(torch.int32) >> _DROPPED, minlength=_BINS)

    def range(self, percentile: float) -> float:
        """The smallest upper edge of a bin below which `percentile` of the magnitudes above zero lie.

        At most the largest magnitude. 0 if all values are zero.
        """
        counts = self._bins.cpu().clone()
        counts[0] = 0  # zero, and numbers too small for a converter
        below = counts.cumsum(0)
        if not int(below[-1]):
            return self.largest
        needed = math.ceil(percentile / 100 * int(below[-1]))
        place = int(torch.searchsorted(below, max(1, needed)))
        return min(_upper_edge(place), self.largest)

    def share_above(self, limit: float) -> float:
        """The share of all values with a magnitude above a range that `range` gave."""
        if not self.count:
            return 0.0
        place = int(torch.tensor(limit, dtype=torch.float32).view(torch.int32)) >> _DROPPED
        return int(self._bins[place + 1 :].sum()) / self.count


def _upper_edge(place: int) -> float:
    bits = (place << _DROPPED) + (1 << _DROPPED) - 1
    return float(torch.tensor(bits, dtype=torch.int32).view(torch.float32))
