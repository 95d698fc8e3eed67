"""Halves the chips per pass when memory runs out, and warns once."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch

from nft_ext.montecarlo.execution.collector import TalliesOf
from nft_ext.montecarlo.statistics.tallies import Tallies

# Texts of torch's CPU allocator, of CUDA's libraries, of oneDNN, and of our operators (csrc/operators/failure.h). Only
# CUDA's allocator raises torch.OutOfMemoryError. oneDNN gives no better reason; a second attempt changes no result.
_MESSAGES = (
    "out of memory",
    "can't allocate memory",
    "ALLOC_FAILED",
    "could not create a primitive",
    "could not execute a primitive",
)


def out_of_memory(error: BaseException) -> bool:
    """Whether `error` is a failed allocation, on the CPU or on CUDA."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and any(message in str(error) for message in _MESSAGES)
    )


class Halving:
    """A `tallies_of` that continues with half as many chips at once when a pass does not fit the memory.

    This changes no chip, and metrics only by the rounding of the products.

    Args:
        tallies_of: as `Collector` takes it.
        per_pass: chips at once at the beginning.
        batch_size: images per batch, for messages.

    Attributes:
        note: a note for the report after memory ran out, else None.
    """

    def __init__(self, tallies_of: TalliesOf, per_pass: int, batch_size: int):
        self.tallies_of, self.at_once, self.batch_size = tallies_of, per_pass, batch_size
        self.note: str | None = None

    def __call__(self, draws: list[int], done: Callable[[float], None]) -> Tallies:
        """Tallies with one row per draw.

        Raises:
            RuntimeError: one chip alone does not fit.
        """
        finished: list[Tallies] = []
        start, reported = 0, 0.0
        while start < len(draws):
            part = draws[start : start + self.at_once]
            reached = start / len(draws)

            def report(share: float, weight: float = len(part) / len(draws)) -> None:
                nonlocal reached, reported
                reached += share * weight
                if reached > reported:  # the progress of a failed attempt is not reported twice
                    done(reached - reported)
                    reported = reached

            tallies = self._attempt(part, report)
            if tallies is not None:
                finished.append(tallies)
                start += len(part)
        return Tallies.concatenate(finished)

    def _attempt(self, draws: list[int], report: Callable[[float], None]) -> Tallies | None:
        """The rows of `draws`. None if they do not fit; `at_once` is then smaller."""
        # Padded to `at_once` chips, so that shapes change only when memory runs out. The surplus is dropped.
        padded = draws + draws[-1:] * (self.at_once - len(draws))
        try:
            return self.tallies_of(padded, report).chips(len(draws))
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            if self.at_once == 1:
                said = (str(error).splitlines() or [type(error).__name__])[0]
                raise RuntimeError(
                    "batch_size: one chip must fit the memory with this many images per pass; use a smaller one; "
                    f"got {self.batch_size} ({said:.200})"
                ) from error
        # After the except clause, because the error holds the memory of the failed forward.
        fewer = -(-self.at_once // 2)
        if self.note is None:
            warnings.warn(
                f"monte_carlo: out of memory with {self.at_once} chips per pass; continuing with half as many",
                RuntimeWarning,
                stacklevel=2,
            )
        self.at_once = fewer
        self.note = f"memory ran out; later passes ran at most {fewer} chips at once"
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return None
