"""The sums behind accuracy, EKL, NLL and calibration of class labels, and the figures made of them."""

from __future__ import annotations

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from nft_ext.montecarlo.statistics.figure import Figure, ratio
from nft_ext.montecarlo.statistics.tallies import Tallies

CALIBRATION_BINS = 15
LABEL_METRICS = ("accuracy", "ekl", "nll", "ece")


def label_tallies(logits: Tensor, labels: Tensor, counted: Tensor | None = None) -> Tallies:
    """Sums of one batch. Reads nothing back to the host.

    The sums are, per chip:
        correct: images whose label has the largest logit.
        loss_correct, loss: -log p_label over the correct images (EKL's numerator), and over all images.
        loss_correct_squares, loss_squares: the same with -log p_label squared.
        bin_images, bin_correct, bin_confidence [S, 15]: images, correct images and sum of the top probability, in 15
            bins of the top probability, (b/15, (b+1)/15].
        undefined: images with an undefined softmax (a NaN or +inf logit). They count as wrong and enter no bin.

    Args:
        logits: [S, B, C] of S chips.
        labels: int64 [B], or [S, B] if the chips see different images.
        counted: bool [S, B], False for inferences to leave out; None: all count.
    """
    logits = logits.double()
    counted = counted if counted is not None else logits.new_ones(logits.shape[:2], dtype=torch.bool)
    log_p = logits.log_softmax(dim=2)
    undefined = log_p.isnan().any(dim=2) & counted
    correct = (logits.argmax(dim=2) == labels) & ~undefined & counted
    loss = -log_p.gather(2, labels.expand(len(logits), -1).unsqueeze(2)).squeeze(2)
    confidence = log_p.amax(dim=2).exp()
    bin_of = (confidence * CALIBRATION_BINS).ceil().sub(1).clamp(0, CALIBRATION_BINS - 1)
    # Compares with every bin, because the order of addition in scatter_add varies on CUDA.
    bins = torch.arange(CALIBRATION_BINS, device=logits.device, dtype=torch.float64)
    member = (bin_of.unsqueeze(2) == bins) & counted.unsqueeze(2)  # [S, B, 15]
    zero = confidence.new_zeros(())
    loss_correct, loss = torch.where(correct, loss, zero), torch.where(counted, loss, zero)
    return Tallies(
        {
            "correct": correct.double().sum(dim=1),
            "loss_correct": loss_correct.sum(dim=1),
            "loss": loss.sum(dim=1),
            "bin_images": member.double().sum(dim=1),
            "bin_correct": (member & correct.unsqueeze(2)).double().sum(dim=1),
            "bin_confidence": torch.where(member, confidence.unsqueeze(2), zero).sum(dim=1),
            "undefined": undefined.double().sum(dim=1),
            "loss_correct_squares": loss_correct.square().sum(dim=1),
            "loss_squares": loss.square().sum(dim=1),
        }
    )


def images_of(tallies: Tallies) -> Tensor:
    """Number of images that each chip saw, [S]."""
    return tallies["bin_images"].sum(dim=1) + tallies["undefined"]


def pooled_ece(tallies: Tallies) -> float:
    """Expected calibration error, pooled over chips: sum over bins of |correct - confidence| / images."""
    gap = (tallies["bin_correct"].sum(dim=0) - tallies["bin_confidence"].sum(dim=0)).abs()
    return float(gap.sum() / tallies["bin_images"].sum())


def label_figure(name: str) -> Figure:
    """The figure called `name`, one of LABEL_METRICS."""
    if name == "accuracy":
        return ratio(name, _right, higher_is_better=True, share=True, right_or_wrong=True)
    if name == "ekl":
        return ratio(name, lambda t: _stacked(t["loss_correct"], t["correct"]), _ekl_products, higher_is_better=False)
    if name == "nll":
        return ratio(name, lambda t: _stacked(t["loss"], images_of(t)), _nll_products, higher_is_better=False)
    return Figure(name, _calibration, _ece, _ece_gradient, higher_is_better=False)


def _stacked(*sums: Tensor) -> ndarray:
    return torch.stack(sums, dim=-1).numpy()


def _right(tallies: Tallies) -> ndarray:
    return _stacked(tallies["correct"], images_of(tallies))


def _ekl_products(tallies: Tallies) -> ndarray:
    both = tallies["loss_correct"]  # of an image: its loss or 0, times 1 or 0
    return _stacked(tallies["loss_correct_squares"], both, both, tallies["correct"]).reshape(-1, 2, 2)


def _nll_products(tallies: Tallies) -> ndarray:
    both = tallies["loss"]
    return _stacked(tallies["loss_squares"], both, both, images_of(tallies)).reshape(-1, 2, 2)


def _calibration(tallies: Tallies) -> ndarray:
    """[R, 16]: correct images minus confidence per bin, and the images in all bins."""
    gaps = tallies["bin_correct"] - tallies["bin_confidence"]
    return torch.cat([gaps, tallies["bin_images"].sum(dim=1, keepdim=True)], dim=1).numpy()


def _ece(sums: ndarray) -> ndarray:
    return np.abs(sums[..., :-1]).sum(-1) / sums[..., -1]


def _ece_gradient(sums: ndarray) -> ndarray:
    return np.append(np.sign(sums[:-1]), -_ece(sums)) / sums[-1]
