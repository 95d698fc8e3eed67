"""The sums kept per chip, from which every metric is computed: a few float64 numbers per metric."""

from __future__ import annotations

import torch
from torch import Tensor


class Tallies:
    """Sums over the examples seen, one row per chip; S chips. float64, which holds counts exactly.

    Args:
        sums: name -> [S] or [S, K].
    """

    def __init__(self, sums: dict[str, Tensor]):
        self.sums = sums

    def __getitem__(self, name: str) -> Tensor:
        """The sums called `name`, [S] or [S, K]."""
        return self.sums[name]

    def __contains__(self, name: str) -> bool:
        """Whether there are sums called `name`."""
        return name in self.sums

    def __add__(self, other: Tallies) -> Tallies:
        """Sums of the same chips over the examples of both."""
        return Tallies({name: sums + other[name] for name, sums in self.sums.items()})

    def __or__(self, other: Tallies) -> Tallies:
        """All sums of both, for the same chips."""
        return Tallies(self.sums | other.sums)

    def chips(self, count: int) -> Tallies:
        """The first `count` chips, on the CPU."""
        return Tallies({name: sums[:count].cpu() for name, sums in self.sums.items()})

    def __len__(self) -> int:
        """Number of chips."""
        return len(next(iter(self.sums.values()))) if self.sums else 0

    @classmethod
    def concatenate(cls, parts: list[Tallies]) -> Tallies:
        """All chips of `parts`, in order; without sums for an empty list."""
        parts = [part for part in parts if part.sums]
        return cls({name: torch.cat([part[name] for part in parts]) for name in (parts[0].sums if parts else ())})
