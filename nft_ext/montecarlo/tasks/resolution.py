"""Fixes the metrics of an evaluation for its data and a first output, and refuses those that do not fit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from nft_ext._common.checks import fail
from nft_ext._common.targets import INTEGERS
from nft_ext._common.value_identity import Describer
from nft_ext.montecarlo.statistics.figure import Figure
from nft_ext.montecarlo.statistics.label_tallies import LABEL_METRICS, label_figure
from nft_ext.montecarlo.tasks.built_in import (
    REGRESSION_METRICS,
    BuiltIn,
    iou_parts,
    numbers,
    positions,
    regression_parts,
    token_parts,
    top_of,
    top_parts,
)
from nft_ext.montecarlo.tasks.examples import Examples
from nft_ext.montecarlo.tasks.metric import Metric, MetricFunction, built_in_figure, function_metric
from nft_ext.montecarlo.tasks.outputs import split_chips
from nft_ext.montecarlo.tasks.task import Task
from nft_ext.nn.batch import TARGETS, size_of
from nft_ext.nn.chip_inputs import tensors_of


def resolved(asked: Mapping[str, BuiltIn | MetricFunction], examples: Examples, output: Any, batch: Any) -> Task:
    """Fixes the metrics for the data and a first output.

    Args:
        asked: of `asked_metrics`.
        examples: all data.
        output, batch: of a first pass of one chip.

    Raises:
        TypeError, ValueError: a metric that does not fit the output or the data. The message begins with its name.
    """
    describe, label_metric = Describer(), None
    figures, metrics, notes = [], [], []
    for name, spec in asked.items():
        if not isinstance(spec, BuiltIn):
            made = function_metric(name, spec, describe.short(spec))
        elif _of_class_labels(spec, output):
            if label_metric is not None and (label_metric.output, label_metric.target) != (spec.output, spec.target):
                fail(name, "must read the same output and target as the other metrics of class labels", spec.name)
            label_metric = spec
            figures.append(_renamed(label_figure(spec.name), name))
            continue
        else:
            made = _built_in(name, spec, examples, output, batch, notes)
        metrics.append(made)
        figures.append(made.figure)
    classes = None
    if label_metric is not None:
        classes = _check_labels(label_metric, examples, output, batch)
    identity, unread = _identity(label_metric, metrics), frozenset(describe.unread)
    task = Task(tuple(figures), label_metric, tuple(metrics), classes, identity, unread, notes)
    for metric in metrics:  # a function that does not fit fails here, before any chip is evaluated
        task.parts(metric, output, batch, size_of(batch))
    return task


def _identity(labels: BuiltIn | None, metrics: list[Metric]) -> dict[str, Any] | None:
    found = {metric.name: metric.identity for metric in metrics}
    if labels is not None and (found or labels.output or labels.target):
        found["class labels"] = [labels.output, labels.target]
    return found or None


def _renamed(figure: Figure, name: str) -> Figure:
    return figure if figure.name == name else replace(figure, name=name)


def _of_class_labels(spec: BuiltIn, output: Any) -> bool:
    """Whether a metric is one of class labels per example. "nll" is one of positions, too."""
    if spec.name not in LABEL_METRICS:
        return False
    logits = spec.of_output(output)
    if logits.dim() == 2:
        return True
    if spec.name != "nll":
        rule = "needs logits [B, classes]; use token_accuracy, nll, perplexity or miou for classes per position"
        fail(spec.name, f"{rule}, and mse, mae or r2 for numbers", f"output {list(logits.shape)}")
    return False


def _check_labels(spec: BuiltIn, examples: Examples, output: Any, batch: Any) -> int:
    """Checks the class labels of all data; returns the number of classes."""
    logits, labels = spec.of_output(output), spec.of_batch(batch)
    if labels.is_floating_point():
        rule = "labels must be integers; use mse, mae or r2 for targets that are numbers"
        fail("data", f"{rule}: metrics=('mse',)", f"{labels.dtype} {list(labels.shape)}")
    split_chips(logits, 1, len(labels))
    classes = logits.shape[1]
    if classes < 2:  # every image would count as correct
        fail("model", "must return logits of at least two classes", f"shape {list(logits.shape)}")
    for part, size in zip(examples.batches, examples.sizes):
        labels = spec.of_batch(part)
        if labels.ndim != 1 or (size is not None and len(labels) != size):
            fail("data", "labels must be one integer per image, shape [n]", list(labels.shape))
        if labels.dtype not in INTEGERS:
            fail("data", "labels must be integers", str(labels.dtype))
        if labels.min() < 0:
            fail("data", "labels must be >= 0", int(labels.min()))
        if labels.max() >= classes:
            rule = f"labels must lie in 0 .. {classes - 1}, because the model has {classes} classes"
            fail("data", rule, int(labels.max()))
    return classes


# ---- built-in metrics of examples


def _built_in(name: str, spec: BuiltIn, examples: Examples, output: Any, batch: Any, notes: list[str]) -> Metric:
    options: list[Any] = [spec.output, spec.target]
    if (most := top_of(spec.name)) is not None:
        _check_labels(spec, examples, output, batch)
        classes = spec.of_output(output).shape[1]
        if most >= classes:
            fail(name, f"needs a number below the {classes} classes of the output", spec.name)
        parts = _reading(spec, lambda logits, labels: top_parts(logits, labels.long(), most))
    elif spec.name in REGRESSION_METRICS:
        mean = None
        if spec.name == "r2":
            mean = _target_mean(name, spec, examples)
        parts = _reading(spec, lambda found, target: regression_parts(spec.name, *numbers(name, found, target), mean))
    else:
        shifted = _predicts_next(spec, examples, output, batch)
        if shifted:
            note = "token t is compared with the output at token t - 1, because the labels equal the model's input"
            notes += [note] if note not in notes else []
        _check_positions(name, spec, examples, output, batch, shifted)
        options += [spec.ignore_index, shifted]
        parts = _reading(spec, _per_position(name, spec, shifted))
    return Metric(name, parts, built_in_figure(name, spec.name), [spec.name, *options])


def _reading(spec: BuiltIn, of: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Any, Any], Tensor]:
    def parts(output: Any, batch: Any) -> Tensor:
        found, target = spec.of_output(output), spec.of_batch(batch)
        if len(found) != len(target):
            rule = "needs an output and a target with one entry per example"
            fail(spec.name, rule, f"output {list(found.shape)} and target {list(target.shape)}")
        return of(found, target.to(found.device))

    return parts


def _per_position(name: str, spec: BuiltIn, shifted: bool) -> Callable[[Tensor, Tensor], Tensor]:
    def parts(logits: Tensor, labels: Tensor) -> Tensor:
        found = positions(name, logits, labels, spec.ignore_index, shifted)
        return iou_parts(*found) if spec.name == "miou" else token_parts(spec.name, *found)

    return parts


def _check_positions(name: str, spec: BuiltIn, examples: Examples, output: Any, batch: Any, shifted: bool) -> None:
    """Checks the labels of all data against the classes of the output."""
    logits, _, _ = positions(name, spec.of_output(output), spec.of_batch(batch), spec.ignore_index, shifted)
    classes, counted = logits.shape[-1], 0
    for part in examples.batches:
        labels = spec.of_batch(part)
        labels = labels[labels != spec.ignore_index]
        counted += labels.numel()
        if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
            wrong = int(labels.min()) if labels.min() < 0 else int(labels.max())
            rule = f"labels must lie in 0 .. {classes - 1}, or be {spec.ignore_index} to be ignored"
            fail("data", f"{rule}; metric({spec.name!r}, ignore_index=...) ignores another label", wrong)
    if not counted:
        fail("data", f"must hold at least one label that is not ignored ({spec.ignore_index})", "none")


def _predicts_next(spec: BuiltIn, examples: Examples, output: Any, batch: Any) -> bool:
    """Whether the labels are those of a causal language model: the input itself, at every position that counts.

    Its output at position t predicts position t + 1. Models of transformers shift such labels in their own loss, too.
    """
    if spec.name == "miou" or spec.of_output(output).dim() != 3 or spec.of_batch(batch).dim() != 2:
        return False
    return all(_is_input(spec.of_batch(part), part, spec.ignore_index) for part in examples.batches)


def _is_input(labels: Tensor, batch: Any, ignore: int) -> bool:
    counts = labels != ignore
    others = (tensor for tensor in _inputs(batch) if tensor.shape == labels.shape and tensor.dtype == labels.dtype)
    return any(bool((other == labels)[counts].all()) for other in others)


def _inputs(batch: Any) -> Iterable[Tensor]:
    """The tensors of a batch without those that hold targets."""
    if isinstance(batch, Mapping):
        return tensors_of([value for key, value in batch.items() if key not in TARGETS])
    return tensors_of(list(batch)[:-1]) if isinstance(batch, (tuple, list)) else ()


def _target_mean(name: str, spec: BuiltIn, examples: Examples) -> Tensor:
    """The mean of the targets over the data, float64 [P].

    Raises:
        ValueError: targets of different lengths, or that are all equal.
    """
    found = [spec.of_batch(part).double().cpu() for part in examples.batches]
    rows = [target.flatten(1) if target.dim() > 1 else target.unsqueeze(1) for target in found]
    if len({row.shape[1] for row in rows}) > 1:
        fail(name, "needs targets of one shape", sorted({row.shape[1] for row in rows}))
    targets = torch.cat(rows)
    if (targets == targets[0]).all():
        fail(name, "needs targets that differ: their variance divides the errors", "equal targets")
    return targets.mean(dim=0)
