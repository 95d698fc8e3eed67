"""A network on its device beside its data, ready for chips: what an evaluation and the estimate of its cost begin with."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from nft_ext._common.bfloat16 import autocast, warn_where_slow
from nft_ext._common.checks import fail
from nft_ext.montecarlo.execution.arguments import Arguments
from nft_ext.montecarlo.execution.chip_evaluator import ChipEvaluator
from nft_ext.montecarlo.execution.images import check_label_range
from nft_ext.montecarlo.execution.memory_format import gains_by_channels_last, takes_channels_last
from nft_ext.montecarlo.execution.passes import Probe, chips_that_fit, images_that_suit, probe, why_one_chip
from nft_ext.montecarlo.execution.protocols import Plan
from nft_ext.montecarlo.execution.session import Session
from nft_ext.montecarlo.execution.subject import check_model, check_sigma_is_known, eval_mode, on_device
from nft_ext.nn import noisy_layers
from nft_ext.nn.contexts import noise


@dataclass(frozen=True)
class Prepared:
    """asked: with a number for batch_size. evaluator: the network in eval mode at the sigma asked for, with inputs and
    `labels`.
    probe: what one small pass told.
    alone: why only one chip may share a pass, or None. hardware: the device's name. began: time.perf_counter() at the
    start.
    """

    asked: Arguments
    evaluator: ChipEvaluator
    labels: Tensor
    probe: Probe
    alone: str | None
    hardware: str
    began: float

    def chips_per_pass(self, planned: Plan) -> int:
        """As asked for, or as many as fit; 1 for a model that allows no more."""
        asked = self.asked
        if self.alone is not None:
            return 1
        if asked.chips_per_pass != "auto":
            return asked.chips_per_pass
        evaluator = self.evaluator
        weights = [layer.weight.numel() for layer in noisy_layers(evaluator.model).values()]
        held = sum(weights) if evaluator.programmed else max(weights)
        images = evaluator.batch_size if planned.slices is None else min(evaluator.batch_size, planned.slices.size)
        return chips_that_fit(asked.most_runs, images, self.probe.row_bytes, 4 * held, evaluator.device)


def check(model, asked: Arguments) -> None:
    """Raises TypeError or ValueError for a model that cannot be evaluated; needs no data and no other ranks."""
    check_model(model)
    if asked.sigma is None:
        check_sigma_is_known(model)


@contextlib.contextmanager
def prepared(
    session: Session, model: nn.Module, data, asked: Arguments, device: torch.device | str | None
) -> Iterator[Prepared]:
    """The network is in eval mode, without gradients, in the precision asked for; afterwards as it was.

    model: one that `check` has passed. Raises TypeError or ValueError for bad data, slice or device, before any chip is
    evaluated.
    """
    inputs, labels = session.read(data)
    if asked.slice_images != "auto" and asked.slice_images > len(labels):
        fail("slice_images", f"must be at most the {len(labels)} images of data", asked.slice_images)
    model, device = on_device(model, session.device(device))
    if asked.batch_size == "auto":
        asked = replace(asked, batch_size=images_that_suit(device))
    warn_where_slow(asked.precision, device)
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    began = time.perf_counter()
    with contextlib.ExitStack() as stack:
        stack.enter_context(eval_mode(model))
        # no_grad, not inference_mode: what a layer caches of its weight must serve training later.
        stack.enter_context(torch.no_grad())
        stack.enter_context(autocast(asked.precision, device))
        stack.enter_context(noise(model, sigma=asked.sigma))  # held throughout, so that the layers' codes are made once
        evaluator = ChipEvaluator(model, inputs, labels, asked.seed, min(asked.batch_size, len(labels)), device)
        found = probe(model, evaluator.logits, evaluator.inputs)
        check_label_range(labels, found.classes)
        if gains_by_channels_last(model, evaluator.inputs, device):
            evaluator.channels_last = takes_channels_last(evaluator.logits, evaluator.inputs, asked.precision)
        alone = None
        if asked.most_runs > 1 and asked.chips_per_pass != 1:
            alone = why_one_chip(evaluator.logits, evaluator.inputs, asked.precision)
        yield Prepared(asked, evaluator, labels, found, alone, hardware, began)
