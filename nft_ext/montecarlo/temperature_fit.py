"""Fits the temperature of a noisy network on validation images and on chips that no evaluation uses."""

from __future__ import annotations

import contextlib
import warnings

import torch
from torch import nn

from nft_ext._common.checks import integer, number
from nft_ext.metrics.temperature import Temperature
from nft_ext.metrics.temperature import fit_temperature as fit_logits
from nft_ext.montecarlo.execution.data_reader import check_label_range, read_data
from nft_ext.montecarlo.execution.evaluated_model import check_model, check_sigma_is_known, eval_mode, on_device
from nft_ext.montecarlo.tasks.outputs import split_chips
from nft_ext.nn.contexts import chips, noise


def fit_temperature(
    model: nn.Module,
    data,
    *,
    runs: int = 8,
    seed: int = 0,
    sigma: float | None = None,
    batch_size: int = 256,
    device: torch.device | str | None = None,
) -> Temperature:
    """Runs a noisy model on validation images and fits one temperature T to the logits of all chips.

    `nft.metrics.fit_temperature(logits, labels)` fits given logits. At T the noisy logits have the smallest negative
    log-likelihood. The fit pools the chips 0 .. runs-1 of `seed` in the key domain "selection". So it uses no evaluated
    chip, and no test image if `data` is a validation set. EKL, NLL and calibration error at T:

        report = nft.monte_carlo(tempered(model, fit_temperature(model, validation)), test)

    Args:
        model: a converted model, inputs [B, ...] -> logits [B, C]. It is evaluated in eval mode and left as it was.
        data: a DataLoader, a map-style Dataset or a pair of tensors, with images that did not train the model.
        runs: number of chips, >= 1; one per pass.
        seed: seed of the chips, 64 bits.
        sigma: overrides the sigma of every layer.
        batch_size: images per batch.
        device: torch device to compute on; None: the model's own.

    Returns:
        T and the negative log-likelihood before and after.

    Raises:
        TypeError, ValueError: as `monte_carlo`; also for NaN or infinite logits.
    """
    runs, batch_size = integer("runs", runs, 1), integer("batch_size", batch_size, 1)
    if sigma is not None:
        sigma = number("sigma", sigma, 0.0)
    check_model(model)
    if sigma is None:
        check_sigma_is_known(model)
    inputs, labels = read_data(data)
    model, device = on_device(model, device)
    if inputs.is_floating_point():
        inputs = inputs.to(next(model.parameters()).dtype)
    logits = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(eval_mode(model))
        stack.enter_context(torch.no_grad())
        stack.enter_context(noise(model, sigma=sigma))
        for draw in range(runs):
            with chips(model, seed=seed, draws=[draw], domain="selection"):
                parts = [split_chips(model(part.to(device)), 1, len(part))[0] for part in inputs.split(batch_size)]
                logits.append(torch.cat(parts).float())
            if draw == 0:
                check_label_range(labels, logits[0].shape[1])
    return fit_logits(torch.stack(logits), labels.to(device))


def calibrate(*args, **kwargs) -> Temperature:
    """Deprecated name of `fit_temperature`, with the same `args` and `kwargs`. The next release removes it."""
    warnings.warn(
        "nft_ext.montecarlo.calibrate is now fit_temperature, with the same arguments; the next release removes the "
        "old name",
        DeprecationWarning,
        stacklevel=2,
    )
    return fit_temperature(*args, **kwargs)
