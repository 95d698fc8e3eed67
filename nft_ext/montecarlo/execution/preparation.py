"""Prepares a network and its data on a torch device, for an evaluation or a cost estimate."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from nft_ext._common.bfloat16 import autocast, warn_where_slow
from nft_ext._common.checks import fail
from nft_ext.montecarlo.execution.arguments import Arguments
from nft_ext.montecarlo.execution.chip_evaluator import ChipEvaluator
from nft_ext.montecarlo.execution.evaluated_model import check_model, check_sigma_is_known, eval_mode, on_device
from nft_ext.montecarlo.execution.memory_format import gains_by_channels_last, takes_channels_last
from nft_ext.montecarlo.execution.passes import Probe, chips_that_fit, images_that_suit, probe
from nft_ext.montecarlo.execution.plan import Plan
from nft_ext.montecarlo.execution.session import Session
from nft_ext.montecarlo.tasks.resolution import resolved
from nft_ext.nn import noisy_layers
from nft_ext.nn.batch import inputs_of
from nft_ext.nn.contexts import chips, noise
from nft_ext.nn.coverage.account import coverage_of
from nft_ext.nn.coverage.products import products_of
from nft_ext.nn.coverage.table import Coverage
from nft_ext.nn.observed import Observation, observed


@dataclass(frozen=True)
class Prepared:
    """A network and its data, ready to be evaluated.

    Attributes:
        asked: the arguments, with a number for batch_size.
        evaluator: the network in eval mode at the sigma asked for, with its data.
        probe: results of one small pass.
        observation: which layers ran in that pass.
        coverage: the coverage of the model, with that pass for an example.
        alone: the reason why chips must not share a pass; None if they may.
        hardware: name of the torch device.
        began: time.perf_counter() at the start.
    """

    asked: Arguments
    evaluator: ChipEvaluator
    probe: Probe
    observation: Observation
    coverage: Coverage
    alone: str | None
    hardware: str
    began: float

    def chips_per_pass(self, planned: Plan) -> int:
        """Chips per pass: as asked for, or as many as fit. 1 for a model that mixes chips."""
        asked, evaluator = self.asked, self.evaluator
        if self.alone is not None:
            return 1
        if isinstance(asked.chips_per_pass, int):
            return asked.chips_per_pass
        weights = [layer.weight_count for layer in noisy_layers(evaluator.model).values()]
        held = sum(weights) if evaluator.programmed else max(weights)
        images = evaluator.batch_size if planned.slices is None else min(evaluator.batch_size, planned.slices.size)
        if evaluator.examples.reason is not None:
            images = max(size or 1 for size in evaluator.examples.sizes)
        found = self.probe
        return chips_that_fit(asked.most_runs, images, found.row_bytes, 4 * held, evaluator.device, found.rows)


def check(model, asked: Arguments) -> None:
    """Checks the model, without data and without other ranks.

    Raises:
        TypeError, ValueError: the model cannot be evaluated.
    """
    check_model(model)
    if asked.sigma is None:
        check_sigma_is_known(model)


@contextlib.contextmanager
def prepared(
    session: Session, model: nn.Module, data: Any, asked: Arguments, device: torch.device | str | None
) -> Iterator[Prepared]:
    """Context with the network in eval mode, without gradients, in the precision asked for. Restores it at the end.

    Args:
        session: journal and ranks.
        model: a model that passed `check`.
        data: as `monte_carlo` takes it.
        asked: the checked arguments.
        device: torch device, or None for the model's own.

    Raises:
        TypeError, ValueError: bad data, slice_images or device. No chip is evaluated before.
    """
    examples = session.read(data)
    if asked.protocol == "stratified" and examples.reason is not None:
        rule = "must be 'full' for this data, because slices need examples of one shape"
        fail("protocol", f"{rule}: pad all batches alike, or give the examples", examples.reason)
    if isinstance(asked.slice_images, int) and asked.slice_images > len(examples):
        fail("slice_images", f"must be at most the {len(examples)} images of data", asked.slice_images)
    model, device = on_device(model, session.device(device))
    batch_size = asked.batch_size if isinstance(asked.batch_size, int) else images_that_suit(device)
    asked = replace(asked, batch_size=batch_size)
    warn_where_slow(asked.precision, device)
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    began = time.perf_counter()
    with contextlib.ExitStack() as stack:
        stack.enter_context(eval_mode(model))
        # no_grad instead of inference_mode, because training may later use the tensors that layers cache.
        stack.enter_context(torch.no_grad())
        stack.enter_context(autocast(asked.precision, device))
        stack.enter_context(noise(model, sigma=asked.sigma))  # one context, so that layers quantize once
        evaluator = ChipEvaluator(model, examples, asked.forward, asked.seed, min(batch_size, len(examples)), device)
        batch, size = evaluator.first()
        with observed(model) as observer, products_of(model) as products:
            found = probe(model, evaluator.output, batch, size or 1)
        evaluator.task = resolved(asked.metrics, examples, found.output, found.batch)
        if asked.forward is None:
            _settle_layout(evaluator, found.batch, asked.precision)
        alone = None
        if asked.most_runs > 1 and asked.chips_per_pass != 1:
            alone = evaluator.why_apart(found.output)
        account = coverage_of(model, products)
        yield Prepared(asked, evaluator, found, observer.found(), account, alone, hardware, began)


def _settle_layout(evaluator: ChipEvaluator, batch: Any, precision: str) -> None:
    """Gives the model images with channels last in memory, if that may be faster and changes nothing."""
    inputs, named = inputs_of(evaluator.model, batch)
    if named or not gains_by_channels_last(evaluator.model, inputs, evaluator.device):
        return
    with chips(evaluator.model, seed=evaluator.seed, draws=[0], domain="evaluation"):
        evaluator.channels_last = takes_channels_last(evaluator.model, inputs, precision)
