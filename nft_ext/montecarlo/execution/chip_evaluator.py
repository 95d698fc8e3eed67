"""Runs images through several programmed chips per pass and sums up the results per chip."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable

import torch
from numpy import ndarray
from torch import Tensor, nn

from nft_ext._common.channels_last import channels_last
from nft_ext.montecarlo.execution.passes import free_memory, split_chips
from nft_ext.montecarlo.statistics.slices import LAST_PERMUTATION, Slices, permutation
from nft_ext.montecarlo.statistics.tallies import Tallies
from nft_ext.nn import noisy_layers
from nft_ext.nn.contexts import chips

DATA_SHARE = 0.5  # largest share of the torch device's free memory that the data may take


class ChipEvaluator:
    """A model on its torch device, with the data that it is tested on.

    Args:
        model: in eval mode while in use.
        inputs: [n, ...]. They move to `device` at once if they take at most half of its free memory, else per batch.
        labels: int64 [n].
        seed: seed of the chips.
        batch_size: images per batch.
        device: torch device of the model.
    """

    def __init__(
        self, model: nn.Module, inputs: Tensor, labels: Tensor, seed: int, batch_size: int, device: torch.device
    ):
        self.model, self.seed, self.batch_size, self.device = model, seed, batch_size, device
        if inputs.is_floating_point():
            inputs = inputs.to(next(model.parameters()).dtype)
        fits = inputs.device == device or inputs.nbytes <= DATA_SHARE * free_memory(device)
        self.inputs = inputs.to(device) if fits else inputs
        self.labels = labels.to(device)
        self.channels_last = False  # whether the model sees images in that layout
        # All batches see the same chips. On CUDA it is faster to program the weights once and hold them. On the CPU the
        # one-pass product generates the weights itself.
        held = any(layer.unquantized for layer in noisy_layers(model).values())  # programmed once in any case
        self.programmed = held or device.type == "cuda"

    def logits(self, inputs: Tensor, draws: list[int]) -> Tensor:
        """Logits [S, b, C] of the S chips `draws` on `inputs` [b, ...], in one pass."""
        with chips(self.model, seed=self.seed, draws=draws, domain="evaluation", programmed=self.programmed):
            return self._pass(inputs, draws)

    def tallies(self, draws: list[int], done: Callable[[float], None]) -> Tallies:
        """Sums over all images for the chips `draws`. Calls done(share of the images) after each batch."""
        parts = []
        # One context for all batches: with `programmed`, the weights are programmed once.
        with chips(self.model, seed=self.seed, draws=draws, domain="evaluation", programmed=self.programmed):
            for start in range(0, len(self.labels), self.batch_size):
                batch = slice(start, start + self.batch_size)
                parts.append(Tallies.of(self._pass(self.inputs[batch], draws), self.labels[batch]))
                done(len(self.labels[batch]) / len(self.labels))
        return functools.reduce(operator.add, parts)

    def slice_tallies(self, slices: Slices, draws: list[int], done: Callable[[float], None]) -> Tallies:
        """Sums of the chips `draws`, each over its own slice of the images."""
        images, counted = slices.of(draws)  # [S, n]
        parts = []
        with chips(
            self.model, seed=self.seed, draws=draws, domain="evaluation", repeat=False, programmed=self.programmed
        ):
            for start in range(0, slices.size, self.batch_size):
                batch = slice(start, start + self.batch_size)
                here = images[:, batch].to(self.inputs.device)
                rows = self.inputs[here.flatten()]  # [S * b, ...], chip-major
                logits = split_chips(self.model(self.laid_out(rows)), *here.shape)
                labels = self.labels[here.to(self.device)]
                parts.append(Tallies.of(logits, labels, counted[:, batch].to(self.device)))
                done(here.shape[1] / slices.size)
        return functools.reduce(operator.add, parts)

    def pilot_correct(self, chips_: int, first: int, last: int) -> ndarray:
        """Whether each chip of the key domain "selection" is correct, bool [chips_, last - first].

        The images are first .. last - 1 of a random order.
        """
        images = torch.from_numpy(permutation(self.seed, LAST_PERMUTATION, len(self.labels))[first:last].copy())
        rows = []
        for draw in range(chips_):
            with chips(self.model, seed=self.seed, draws=draw, domain="selection", programmed=self.programmed):
                parts = [
                    self._pass(self.inputs[part.to(self.inputs.device)], [draw])[0].argmax(dim=1)
                    == self.labels[part.to(self.device)]
                    for part in images.split(self.batch_size)
                ]
            rows.append(torch.cat(parts).cpu())
        return torch.stack(rows).numpy()

    def pilot_pass(self, chips_: int, count: int) -> None:
        """One pass of `chips_` chips of the key domain "selection" with `count` images each, for timing.

        It returns when the sums are on the CPU.
        """
        rows = (torch.arange(chips_ * count) % len(self.labels)).to(self.inputs.device)
        with chips(
            self.model,
            seed=self.seed,
            draws=range(chips_),
            domain="selection",
            repeat=False,
            programmed=self.programmed,
        ):
            logits = split_chips(self.model(self.laid_out(self.inputs[rows])), chips_, count)
            Tallies.of(logits, self.labels[rows.to(self.device)].view(chips_, count)).chips(chips_)

    def _pass(self, inputs: Tensor, draws: list[int]) -> Tensor:
        """Logits [S, b, C] on `inputs` [b, ...] of the chips that the open context programs."""
        return split_chips(self.model(self.laid_out(inputs)), len(draws), len(inputs))

    def laid_out(self, inputs: Tensor) -> Tensor:
        """`inputs` on the model's torch device, in the memory format that the model sees."""
        inputs = inputs.to(self.device)
        return channels_last(inputs) if self.channels_last else inputs
