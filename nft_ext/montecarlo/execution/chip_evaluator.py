"""Runs examples through several programmed chips per pass and sums up the results per chip."""

from __future__ import annotations

import functools
import operator
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor, nn

from nft_ext._common.channels_last import channels_last
from nft_ext._common.checks import fail
from nft_ext.montecarlo.execution.passes import PROBE_IMAGES, free_memory
from nft_ext.montecarlo.statistics.slices import LAST_PERMUTATION, Slices, permutation
from nft_ext.montecarlo.statistics.tallies import Tallies
from nft_ext.montecarlo.tasks.batches import copied, for_chips, moved, of_chip
from nft_ext.montecarlo.tasks.examples import Examples
from nft_ext.montecarlo.tasks.forward import ForwardFunction
from nft_ext.montecarlo.tasks.outputs import why_whole
from nft_ext.montecarlo.tasks.task import Task
from nft_ext.nn import contexts, noisy_layers
from nft_ext.nn.batch import inputs_of
from nft_ext.nn.chip_check import SAME, difference
from nft_ext.nn.chip_inputs import tensors_of
from nft_ext.nn.contexts import chips

DATA_SHARE = 0.5  # largest share of the torch device's free memory that the data may take


class ChipEvaluator:
    """A model on its torch device, with the data that it is tested on.

    Args:
        model: in eval mode while in use.
        examples: they move to `device` at once if they take at most half of its free memory, else per batch.
        forward: of the user, or None.
        seed: seed of the chips.
        batch_size: examples per batch.
        device: torch device of the model.

    Attributes:
        task: what is summed; set before any chip is evaluated.
        channels_last: whether the model sees images in that layout.
    """

    task: Task

    def __init__(
        self,
        model: nn.Module,
        examples: Examples,
        forward: ForwardFunction | None,
        seed: int,
        batch_size: int,
        device: torch.device,
    ):
        self.model, self.forward, self.seed = model, forward, seed
        self.batch_size, self.device = batch_size, device
        fits = examples.nbytes <= DATA_SHARE * free_memory(device)
        self.examples = examples.to(device) if fits else examples
        self.channels_last = False
        # All batches see the same chips. On CUDA it is faster to program the weights once and hold them. On the CPU the
        # one-pass product generates the weights itself.
        held = any(layer.unquantized for layer in noisy_layers(model).values())  # programmed once in any case
        self.programmed = held or device.type == "cuda"

    def tallies(self, draws: list[int], done: Callable[[float], None]) -> Tallies:
        """Sums over all examples for the chips `draws`. Calls done(share of the examples) after each batch."""
        parts = []
        # One context for all batches: with `programmed`, the weights are programmed once.
        with self._chips(draws):
            for batch, size in self.examples.parts(self.batch_size):
                batch = moved(batch, self.device)
                output = self._pass(batch, size, len(draws))
                parts.append(self.task.tallies(output, batch, len(draws), size, shared=True, counted=None))
                done((1 if size is None else size) / len(self.examples))
        return functools.reduce(operator.add, parts)

    def slice_tallies(self, slices: Slices, draws: list[int], done: Callable[[float], None]) -> Tallies:
        """Sums of the chips `draws`, each over its own slice of the examples."""
        numbers, counted = slices.of(draws)  # [S, n]
        if len(draws) == 1 and self.forward is not None:  # its output may hold a number for the whole batch
            numbers, counted = numbers[counted].unsqueeze(0), counted[counted].unsqueeze(0)
        parts = []
        with self._chips(draws):
            for start in range(0, numbers.shape[1], self.batch_size):
                here = slice(start, start + self.batch_size)
                batch = moved(self.examples.pick(numbers[:, here].flatten()), self.device)  # [S * b, ...], chip-major
                size = numbers[:, here].shape[1]
                output = self._call(copied(batch))
                shown = counted[:, here].to(self.device)
                parts.append(self.task.tallies(output, batch, len(draws), size, shared=False, counted=shown))
                done(size / numbers.shape[1])
        return functools.reduce(operator.add, parts)

    def pilot_parts(self, chips_: int, first: int, last: int) -> ndarray:
        """What each chip of the key domain "selection" gives the first metric, float64 [chips_, last - first, K].

        The examples are first .. last - 1 of a random order.
        """
        order = torch.from_numpy(permutation(self.seed, LAST_PERMUTATION, len(self.examples))[first:last].copy())
        rows = []
        for draw in range(chips_):
            with self._chips([draw], "selection"):
                parts = []
                for numbers in order.split(self.batch_size):
                    batch = moved(self.examples.pick(numbers), self.device)
                    output = self._pass(batch, len(numbers), 1)
                    parts.append(self.task.first_parts(output, batch, len(numbers)))
            rows.append(np.concatenate(parts))
        return np.stack(rows)

    def pilot_pass(self, chips_: int, count: int) -> None:
        """One pass of `chips_` chips of the key domain "selection" with `count` examples each, for timing.

        It returns when the sums are on the CPU.
        """
        if self.examples.reason is not None:
            batch, size = moved(self.examples.batches[0], self.device), self.examples.sizes[0]
            with self._chips(range(chips_), "selection"):
                output = self._pass(batch, size, chips_)
                self.task.tallies(output, batch, chips_, size, shared=True, counted=None).chips(chips_)
            return
        numbers = torch.arange(chips_ * count) % len(self.examples)
        with self._chips(range(chips_), "selection"):
            batch = moved(self.examples.pick(numbers), self.device)
            output = self._call(copied(batch))
            self.task.tallies(output, batch, chips_, count, shared=False, counted=None).chips(chips_)

    def first(self) -> tuple[Any, int | None]:
        """A few examples on the model's torch device, and their number."""
        batch, size = self.examples.first(PROBE_IMAGES)
        return moved(batch, self.device), size

    def output(self, batch: Any) -> Any:
        """The output of chip 0 on `batch`, in one pass."""
        with self._chips([0]):
            return self._call(copied(batch))

    def why_apart(self, output: Any) -> str | None:
        """The reason why chips must not share a pass, or None if they may. Checks a few examples.

        Args:
            output: of chip 0 for the examples of `first`.
        """
        if None in self.examples.sizes:
            return self.examples.reason
        batch, size = self.first()
        reason = self.examples.reason if size is None else why_whole(output, size)
        if size is None or reason is not None:
            return reason
        if self.forward is None:
            args, kwargs = inputs_of(self.model, batch)
            return contexts.why_apart(self.model, *map(self.laid_out, args), **kwargs)
        return self._why_forward_apart(batch, size, output)

    def _why_forward_apart(self, batch: Any, size: int, output: Any) -> str | None:
        """The reason for a forward of the user: its output for two chips in one pass must be that of two passes."""
        try:
            with self._chips([1]):
                alone = [output, self._call(copied(batch))]
            with self._chips([0, 1]), warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # of `chips`, for a model that mixes chips
                together = self._call(for_chips(batch, size, 2))
                entry = next(iter(noisy_layers(self.model).values()))._entry
        except Exception as error:
            if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
                raise
            first = next(iter(str(error).strip().splitlines()), type(error).__name__)
            return f"two chips in one call of forward fail: {first}"
        if entry is not None and entry.reason is not None:
            return entry.reason
        if (reason := why_whole(together, 2 * size)) is not None:
            return reason
        found = [tensors_of(of_chip(together, chip, size, 2)) for chip in range(2)]
        wanted = [tensors_of(one) for one in alone]
        differ = False
        for one, two, a, b in zip(*wanted, *found, strict=True):
            if not max(difference(a, one), difference(b, two)) <= SAME:
                return "two chips in one call of forward differ from two calls"
            differ = differ or difference(two, one) > SAME
        return None if differ else "two chips give the same output here, so a mixture would not show"

    def _chips(self, draws: Any, domain: str = "evaluation") -> Any:
        # repeat=False: the batch has the examples of every chip, so that a forward sees one consistent batch.
        return chips(self.model, seed=self.seed, draws=draws, domain=domain, repeat=False, programmed=self.programmed)

    def _pass(self, batch: Any, size: int | None, chips_: int) -> Any:
        """The output [S * b, ...] on `batch` [b, ...] of the S chips that the open context programs."""
        if size is None:
            if chips_ > 1:
                fail("chips_per_pass", "must be 1 for batches whose tensors have no common dim 0", chips_)
            return self._call(copied(batch))
        return self._call(for_chips(batch, size, chips_))

    def _call(self, batch: Any) -> Any:
        if self.forward is not None:
            return self.forward(self.model, batch)
        args, kwargs = inputs_of(self.model, batch)
        return self.model(*map(self.laid_out, args), **kwargs)

    def laid_out(self, value: Any) -> Any:
        """A positional input in the memory format that the model sees."""
        return channels_last(value) if self.channels_last and isinstance(value, Tensor) and value.dim() == 4 else value
