"""The metrics of one evaluation, fixed once the data and a first output are known."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from numpy import ndarray
from torch import Tensor

from nft_ext._common.checks import fail
from nft_ext._common.functions import check_parts
from nft_ext.montecarlo.statistics.figure import Figure
from nft_ext.montecarlo.statistics.label_tallies import label_tallies
from nft_ext.montecarlo.statistics.tallies import Tallies
from nft_ext.montecarlo.tasks.batches import first_of, of_chip
from nft_ext.montecarlo.tasks.built_in import BuiltIn
from nft_ext.montecarlo.tasks.metric import Metric
from nft_ext.montecarlo.tasks.outputs import split_chips, why_whole
from nft_ext.nn.chip_inputs import tensors_of


@dataclass(frozen=True)
class Task:
    """What is summed over the examples that a chip sees.

    Attributes:
        figures: the metrics' figures, in the order asked for.
        labels: where logits and class labels are, if a metric is one of LABEL_METRICS; its sums serve all of them.
        metrics: the other metrics.
        classes: number of classes of the logits; None without `labels`.
        identity: what decides the sums, as JSON; None if only LABEL_METRICS are asked for. They share all sums, so a
            journal serves any choice among them.
        unread: types of values in metric functions that no identity can hold.
        notes: remarks for the report.
    """

    figures: tuple[Figure, ...]
    labels: BuiltIn | None
    metrics: tuple[Metric, ...]
    classes: int | None = None
    identity: dict[str, Any] | None = None
    unread: frozenset[str] = frozenset()
    notes: list[str] = field(default_factory=list)

    def tallies(
        self, output: Any, batch: Any, chips: int, size: int | None, shared: bool, counted: Tensor | None
    ) -> Tallies:
        """Sums of one batch, one row per chip.

        Args:
            output: of the forward, chip-major [chips * size, ...].
            batch: what the chips saw: `size` examples for all of them, or chip-major.
            chips: number of chips; 1 if `size` is None.
            size: examples per chip.
            shared: whether `batch` is for all chips.
            counted: bool [chips, size], True for the examples that count, the first ones; None: all.
        """
        found = Tallies({})
        if self.labels is not None:
            labels = self.labels.of_batch(batch)
            logits = split_chips(self.labels.of_output(output), chips, len(labels) if size is None else size)
            found = label_tallies(logits, labels if shared else labels.view(chips, -1), counted)
        if self.metrics:
            parts: list[list[Tensor]] = [[] for _ in self.metrics]
            if chips > 1 and (reason := why_whole(output, chips * (size or 0))) is not None:
                fail("forward", f"must return what can be cut into {chips} chips for every batch", reason)
            for chip in range(chips):
                own, seen, count = output, batch, size
                if size is not None and chips > 1:
                    own = of_chip(output, chip, size, chips)
                    seen = batch if shared else of_chip(batch, chip, size, chips)
                if size is not None and counted is not None and (count := int(counted[chip].sum())) < size:
                    # A function need not know empty batches: it sees one example, which then does not count.
                    own, seen = first_of(own, max(count, 1), size), first_of(seen, max(count, 1), size)
                for metric, found_parts in zip(self.metrics, parts):
                    given = self.parts(metric, own, seen, None if count is None else max(count, 1))
                    found_parts.append(given if count is None else given[:count])
            for metric, found_parts in zip(self.metrics, parts):
                found = found | metric.tallies(found_parts)
        return found

    def first_parts(self, output: Any, batch: Any, size: int) -> ndarray:
        """The numbers of the first metric for every example of one chip's output, [size, K]."""
        figure = self.figures[0]
        if self.labels is not None and all(figure.name != metric.name for metric in self.metrics):
            logits = split_chips(self.labels.of_output(output), 1, size)[0]
            each = label_tallies(logits.unsqueeze(1), self.labels.of_batch(batch).view(-1, 1))  # every image as a chip
            return figure.sums(each.chips(size))
        metric = next(metric for metric in self.metrics if metric.name == figure.name)
        return self.parts(metric, output, batch, size).cpu().numpy()

    def parts(self, metric: Metric, output: Any, batch: Any, size: int | None) -> Tensor:
        """The numbers of one of `metrics` for the examples of one chip, float64 [size, K], checked."""
        written = [(tensor, tensor._version) for tensor in tensors_of(batch)]
        device = next((tensor.device.type for tensor in tensors_of(output)), "cpu")
        with torch.autocast(device, enabled=False):
            parts = metric.parts(output, batch)
        check_parts(f"metrics[{metric.name!r}]", parts, size)
        if any(tensor._version != version for tensor, version in written):
            fail(f"metrics[{metric.name!r}]", "must not write to the batch", "a tensor that it changed in place")
        return parts
