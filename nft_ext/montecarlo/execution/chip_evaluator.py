"""Runs images through several programmed chips at once, and keeps their sums."""

from __future__ import annotations

from collections.abc import Callable

import torch
from numpy import ndarray
from torch import Tensor, nn

from nft_ext._common.channels_last import channels_last
from nft_ext.montecarlo.execution.passes import free_memory, split_chips
from nft_ext.montecarlo.statistics.slices import LAST_PERMUTATION, Slices, permutation
from nft_ext.montecarlo.statistics.tallies import Tallies
from nft_ext.nn.contexts import chips

DATA_SHARE = 0.5  # of the free memory of the device that the data may take


class ChipEvaluator:
    """A model on its device with the data it is tested on.

    model: in eval mode while in use. inputs: [n, ...]; labels: int64 [n]; both move to `device`
    if they take at most half of its free memory, else batch by batch. seed: of the chips.
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
        # Several batches see the same chips. On CUDA a layer's weights then cost more than holding them: launches, and
        # Python's time between them, in every batch. On the CPU our own product makes them on its way.
        self.programmed = device.type == "cuda"

    def logits(self, inputs: Tensor, draws: list[int]) -> Tensor:
        """Logits [S, b, C] of the chips `draws` (S of them) on `inputs` [b, ...], in one pass."""
        with chips(self.model, seed=self.seed, draws=draws, domain="evaluation", programmed=self.programmed):
            return self._pass(inputs, draws)

    def tallies(self, draws: list[int], done: Callable[[float], None]) -> Tallies:
        """Sums over all images for the chips `draws`; `done(share)` is told of every share of the images."""
        total = None
        # One context for all batches: the layers keep their quantized weights within it.
        with chips(self.model, seed=self.seed, draws=draws, domain="evaluation", programmed=self.programmed):
            for start in range(0, len(self.labels), self.batch_size):
                batch = slice(start, start + self.batch_size)
                part = Tallies.of(self._pass(self.inputs[batch], draws), self.labels[batch])
                total = part if total is None else total + part
                done(len(self.labels[batch]) / len(self.labels))
        return total

    def slice_tallies(self, slices: Slices, draws: list[int], done: Callable[[float], None]) -> Tallies:
        """Sums of the chips `draws`, each over its own slice of the images."""
        images, counted = slices.of(draws)  # [S, n]
        total = None
        with chips(
            self.model, seed=self.seed, draws=draws, domain="evaluation", repeat=False, programmed=self.programmed
        ):
            for start in range(0, slices.size, self.batch_size):
                batch = slice(start, start + self.batch_size)
                here = images[:, batch].to(self.inputs.device)
                rows = self.inputs[here.flatten()]  # [S * b, ...], chip-major
                logits = split_chips(self.model(self._laid_out(rows)), *here.shape)
                labels = self.labels[here.to(self.device)]
                part = Tallies.of(logits, labels, counted[:, batch].to(self.device))
                total = part if total is None else total + part
                done(here.shape[1] / slices.size)
        return total

    def pilot_correct(self, chips_: int, first: int, last: int) -> ndarray:
        """Whether chips of the key domain "selection" are right, bool [chips_, last - first], on images
        first .. last - 1 of a random order."""
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
        """One pass of `chips_` chips of the domain "selection" with `count` images each, to be timed; ends when its
        sums have arrived.
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
            logits = split_chips(self.model(self._laid_out(self.inputs[rows])), chips_, count)
            Tallies.of(logits, self.labels[rows.to(self.device)].view(chips_, count)).chips(chips_)

    def _pass(self, inputs: Tensor, draws: list[int]) -> Tensor:
        """The same, of the chips already in force."""
        return split_chips(self.model(self._laid_out(inputs)), len(draws), len(inputs))

    def _laid_out(self, inputs: Tensor) -> Tensor:
        """On the model's device, in the layout that it is to see."""
        inputs = inputs.to(self.device)
        return channels_last(inputs) if self.channels_last else inputs
