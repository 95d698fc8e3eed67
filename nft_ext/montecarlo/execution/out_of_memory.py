"""Too little memory for the chips of a pass: half as many at a time from there on, said once."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch

from nft_ext.montecarlo.execution.collect import TalliesOf
from nft_ext.montecarlo.statistics.tallies import Tallies

# What torch's CPU allocator and the CUDA libraries say; torch.OutOfMemoryError is CUDA's allocator alone.
_SAYINGS = ("out of memory", "can't allocate memory", "ALLOC_FAILED")


def out_of_memory(error: BaseException) -> bool:
    """Whether `error` is an allocation that failed, on the CPU or on CUDA."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and any(saying in str(error) for saying in _SAYINGS)
    )


class Halving:
    """A `tallies_of` that goes on when a pass does not fit the memory: with half as many chips at once, which changes
    no chip, and no metric beyond the rounding of the products. One chip alone that does not fit is an error.

    tallies_of: as `Collector` takes it. per_pass: chips at once to begin with. batch_size: images a pass, for the
    messages.
    note: None, or what happened, for the report.
    """

    def __init__(self, tallies_of: TalliesOf, per_pass: int, batch_size: int):
        self.tallies_of, self.at_once, self.batch_size = tallies_of, per_pass, batch_size
        self.note: str | None = None

    def __call__(self, draws: list[int], done: Callable[[float], None]) -> Tallies:
        """One row a draw.

        Raises RuntimeError if one chip does not fit.
        """
        finished: list[Tallies] = []
        start, told = 0, 0.0
        while start < len(draws):
            some = draws[start : start + self.at_once]
            reached = start / len(draws)

            def tell(share: float) -> None:
                nonlocal reached, told
                reached += share * len(some) / len(draws)
                if reached > told:  # what a failed attempt told is not told again
                    done(reached - told)
                    told = reached

            tallies = self._attempt(some, tell)
            if tallies is not None:
                finished.append(tallies)
                start += len(some)
        return Tallies.concatenate(finished)

    def _attempt(self, draws: list[int], tell: Callable[[float], None]) -> Tallies | None:
        """The rows of `draws`; None if they did not fit, and then fewer will be tried."""
        # Always as many chips as fit, so that shapes change only when memory runs out; the surplus is dropped.
        padded = draws + draws[-1:] * (self.at_once - len(draws))
        try:
            return self.tallies_of(padded, tell).chips(len(draws))
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            if self.at_once == 1:
                raise RuntimeError(
                    "batch_size: one chip must fit the memory with this many images a pass, use a smaller "
                    f"batch_size; got {self.batch_size}"
                ) from error
        # Only here, as the error holds the memory of the forward that failed.
        fewer = -(-self.at_once // 2)
        if self.note is None:
            warnings.warn(
                f"monte_carlo: out of memory with {self.at_once} chips a pass; going on with half as many",
                RuntimeWarning,
                stacklevel=2,
            )
        self.at_once = fewer
        self.note = f"memory ran out; from there on at most {fewer} chips at once"
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return None
