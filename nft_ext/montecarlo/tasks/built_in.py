"""The built-in metrics: each maps one chip's output and its batch to a few numbers per example.

docs/reference/metrics.md has their definitions and sources.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nft_ext._common.checks import did_you_mean, fail, integer
from nft_ext._common.logits import logits_of
from nft_ext._common.targets import IGNORED, INTEGERS
from nft_ext.montecarlo.statistics.label_tallies import LABEL_METRICS
from nft_ext.montecarlo.tasks.batches import labels_of

TOKEN_METRICS = ("token_accuracy", "perplexity", "miou")
REGRESSION_METRICS = ("mse", "mae", "r2")
NAMES = (*LABEL_METRICS, "top5", *TOKEN_METRICS, *REGRESSION_METRICS)
_TOP = re.compile(r"top([1-9]\d{0,8})")


@dataclass(frozen=True)
class BuiltIn:
    """A built-in metric with its options; see `metric`."""

    name: str
    ignore_index: int = IGNORED
    output: str | None = None
    target: str | None = None

    def of_output(self, output: Any) -> Tensor:
        """The tensor of the output that the metric reads."""
        if self.output is None:
            try:
                return logits_of(output)
            except TypeError:
                rule = "needs an output that is a tensor or holds .logits; else give forward= or metric(..., output=)"
                fail(self.name, rule, type(output).__name__, TypeError)
        found = output.get(self.output) if isinstance(output, Mapping) else getattr(output, self.output, None)
        if not isinstance(found, Tensor):
            fail(self.name, f"needs a tensor {self.output!r} in the output", type(output).__name__, TypeError)
        return found

    def of_batch(self, batch: Any) -> Tensor:
        """The tensor of the batch that the output is compared with."""
        if self.target is None:
            found = labels_of(batch)
        else:
            found = batch.get(self.target) if isinstance(batch, Mapping) else None
        if not isinstance(found, Tensor):
            wanted = "one of labels, label, targets, target, or last in a tuple; else give metric(..., target=)"
            wanted = wanted if self.target is None else repr(self.target)
            shown = f"keys {', '.join(map(str, batch))}" if isinstance(batch, Mapping) else type(batch).__name__
            fail(self.name, f"needs a tensor in the batch under {wanted}", shown)
        return found


def metric(name: str, *, ignore_index: int = IGNORED, output: str | None = None, target: str | None = None) -> BuiltIn:
    """A built-in metric with options, for the argument `metrics` of `monte_carlo`.

    Args:
        name: "accuracy", "ekl", "nll", "ece", "top5" (or another number), "token_accuracy", "perplexity", "miou",
            "mse", "mae" or "r2" (docs/reference/metrics.md).
        ignore_index: label of positions that do not count, in "nll" of positions, "token_accuracy", "perplexity" and
            "miou".
        output: key or attribute of the output that holds the tensor; None: the output itself, or its `.logits`.
        target: key of the batch that holds the targets; None: "labels", "label", "targets" or "target", or the last
            entry of a tuple.

    Returns:
        The metric: `metrics=("accuracy", ("iou", metric("miou", ignore_index=255)))`.

    Raises:
        TypeError, ValueError: an unknown name, or a bad option.
    """
    if not isinstance(name, str) or not is_built_in(name):
        fail("name", f"must be one of {', '.join(NAMES)}{did_you_mean(name, NAMES)}", name)
    integer("ignore_index", ignore_index, -(2**31))
    for option, value in (("output", output), ("target", target)):
        if value is not None and not isinstance(value, str):
            fail(option, "must be a string, or None", repr(value), TypeError)
    return BuiltIn(name, int(ignore_index), output, target)


def is_built_in(name: str) -> bool:
    """Whether a built-in metric has that name."""
    return name in NAMES or _TOP.fullmatch(name) is not None


def is_share(name: str) -> bool:
    """Whether the metric is a share in 0 .. 1."""
    return name in ("accuracy", "ece", "token_accuracy", "miou") or top_of(name) is not None


def top_of(name: str) -> int | None:
    """The number in a name like "top5"; None for other names."""
    found = _TOP.fullmatch(name)
    return None if found is None else int(found[1])


# ---- class labels per example


def top_parts(logits: Tensor, labels: Tensor, most: int) -> Tensor:
    """[B, 2]: whether the label is among the `most` largest logits, and 1. Of equal logits, the first classes win.

    Args:
        logits: [B, C].
        labels: int64 [B].
    """
    own = logits.gather(1, labels.unsqueeze(1))
    before = torch.arange(logits.shape[1], device=logits.device) < labels.unsqueeze(1)
    ahead = (logits > own) | ((logits == own) & before)
    right = (ahead.sum(dim=1) < most) & ~logits.isnan().any(dim=1)
    return torch.stack([right.double(), torch.ones_like(right, dtype=torch.float64)], dim=1)


# ---- class labels per position


def positions(name: str, logits: Tensor, labels: Tensor, ignore: int, shifted: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Logits [B, P, C], labels int64 [B, P] with 0 where ignored, and whether a position counts, bool [B, P].

    Args:
        name: of the metric, for errors.
        logits: [B, ..., C] or [B, C, ...].
        labels: integers of the same shape without C.
        ignore: label of positions that do not count.
        shifted: whether position t is predicted by the logits of position t - 1.

    Raises:
        ValueError: shapes that do not fit, or that leave open where the classes are.
    """
    shape, found = list(logits.shape), list(labels.shape)
    got = f"output {shape} and labels {labels.dtype} {found}"
    if labels.dtype not in INTEGERS:
        fail(name, "needs integer labels", got)
    if logits.dim() < 2 or not logits.is_floating_point():
        fail(name, "needs logits [B, ..., classes] or [B, classes, ...]", got)
    last, second = found == shape[:-1], found == [shape[0], *shape[2:]]
    if last and second and logits.dim() > 2:
        rule = "needs logits whose classes are at one place only; flatten the positions in forward="
        fail(name, rule, got)
    if not (last or second):
        fail(name, "needs labels of the output's shape without its classes", got)
    logits = logits if last else logits.movedim(1, -1)
    if shifted:
        logits, labels = logits[:, :-1], labels[:, 1:]
    logits, labels = logits.flatten(1, -2) if logits.dim() > 2 else logits.unsqueeze(1), labels.reshape(len(labels), -1)
    counts = labels != ignore
    return logits, torch.where(counts, labels, 0).long(), counts


def token_parts(name: str, logits: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
    """[B, 2]: sum over the positions that count, and their number.

    The sum is of right positions for "token_accuracy", and of -log p_label for "nll" and "perplexity".
    """
    if name == "token_accuracy":
        values = ((logits.argmax(dim=-1) == labels) & ~logits.isnan().any(dim=-1)).double()
    else:
        values = -logits.double().log_softmax(dim=-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    values = torch.where(counts, values, values.new_zeros(()))
    return torch.stack([values.sum(dim=1), counts.double().sum(dim=1)], dim=1)


def iou_parts(logits: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
    """[B, 2 C]: positions per class where prediction and label agree, and positions where either is that class."""
    batch, _, classes = logits.shape
    predicted = logits.argmax(dim=-1)
    offset = torch.arange(batch, device=logits.device).unsqueeze(1) * classes

    def per_class(values: Tensor, where: Tensor) -> Tensor:
        return torch.bincount((values + offset)[where], minlength=batch * classes).view(batch, classes)

    both = per_class(labels, counts & (predicted == labels))
    either = per_class(labels, counts) + per_class(predicted, counts) - both
    return torch.cat([both, either], dim=1).double()


# ---- numbers


def numbers(name: str, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Output and target as float64 [B, P].

    Raises:
        ValueError: their shapes differ, and not only by a dimension of one number per example.
    """
    alike = output.shape == target.shape
    single = output.dim() and target.dim() and len(output) == len(target) == output.numel() == target.numel()
    if not (alike or single) or not output.dim():
        rule = "needs an output of the target's shape"
        fail(name, rule, f"output {list(output.shape)} and target {list(target.shape)}")
    return output.double().reshape(len(output), -1), target.double().reshape(len(target), -1)


def regression_parts(name: str, output: Tensor, target: Tensor, mean: Tensor | None) -> Tensor:
    """[B, 2]: the sum over an example's numbers, and the number that divides it.

    "mse" and "mae": squared and absolute errors, and how many. "r2": squared deviations of the target from its mean
    over the data, minus squared errors; and these deviations.

    Args:
        name: of the metric.
        output, target: float64 [B, P].
        mean: [P], the target's mean over the data, for "r2".
    """
    error = target - output
    if mean is None:
        values = error.square() if name == "mse" else error.abs()
        return torch.stack([values.sum(dim=1), values.new_full((len(values),), values.shape[1])], dim=1)
    spread = (target - mean.to(target.device)).square().sum(dim=1)
    return torch.stack([spread - error.square().sum(dim=1), spread], dim=1)
