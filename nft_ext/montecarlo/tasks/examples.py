"""The data of an evaluation in memory: one batch of all examples, or batches that have no common shape."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nft_ext._common.checks import fail
from nft_ext.montecarlo.tasks.batches import bytes_of, examples_of, joined, moved
from nft_ext.nn.batch import size_of
from nft_ext.nn.chip_inputs import mapped, tensors_of


@dataclass
class Examples:
    """All examples of the data.

    Attributes:
        batches: one batch if `reason` is None, else the batches as they came.
        sizes: examples of every batch; None if its tensors share no dim 0.
        reason: why the batches cannot be joined; None: they are joined.
    """

    batches: list[Any]
    sizes: list[int | None]
    reason: str | None = field(default=None)

    @classmethod
    def of(cls, batches: list[Any]) -> Examples:
        """Joins batches that have a common shape.

        Raises:
            ValueError: no example.
            TypeError: a batch without tensors.
        """
        for batch in batches:
            if not tensors_of(batch):
                rule = "must have batches, or items, with tensors: a tensor, or a tuple or dict of tensors"
                fail("data", rule, type(batch).__name__, kind=TypeError)
        batches = [detached(batch) for batch in batches]
        sizes = [size_of(batch) for batch in batches]
        if not batches or all(size == 0 for size in sizes):
            fail("data", "must hold at least one image", "0 images" if batches else "no batch")
        known = [size for size in sizes if size is not None]
        if len(known) < len(sizes):
            shapes = [list(tensor.shape) for tensor in tensors_of(batches[sizes.index(None)])]
            return cls(batches, list(sizes), f"the tensors of a batch have no common dim 0: shapes {shapes[:4]}")
        whole, reason = (batches[0], None) if len(batches) == 1 else joined(batches, known)
        if reason is not None:
            return cls(batches, list(sizes), f"the batches have no common shape, since {reason}")
        return cls([whole], [sum(known)])

    @property
    def whole(self) -> Any:
        """The batch of all examples, of joined data."""
        if self.reason is not None:
            fail("data", "must have examples of one shape", self.reason)
        return self.batches[0]

    @property
    def pair(self) -> tuple[Tensor, Tensor] | None:
        """Inputs [n, ...] and class labels int64 [n], if the data are such a pair."""
        batch = self.batches[0]
        if self.reason is not None or type(batch) not in (tuple, list) or len(batch) != 2:
            return None
        inputs, labels = batch
        if not (isinstance(inputs, Tensor) and isinstance(labels, Tensor)):
            return None
        return (inputs, labels) if labels.dtype == torch.int64 and labels.dim() == 1 else None

    def __len__(self) -> int:
        """Number of examples. Batches whose size is unknown count as one."""
        return sum(1 if size is None else size for size in self.sizes)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(map(bytes_of, self.batches))

    def to(self, device: torch.device) -> Examples:
        """The same examples on a torch device."""
        return Examples([moved(batch, device) for batch in self.batches], self.sizes, self.reason)

    def parts(self, most: int) -> Iterator[tuple[Any, int | None]]:
        """Batches of at most `most` examples with their sizes; those that came if they have no common shape."""
        if self.reason is not None:
            yield from zip(self.batches, self.sizes)
            return
        count = len(self)
        for start in range(0, count, most):
            size = min(most, count - start)
            yield self.batches[0] if size == count else examples_of(self.whole, slice(start, start + size), count), size

    def first(self, most: int) -> tuple[Any, int | None]:
        """The first examples, at most `most`, and their number."""
        batch, size = self.batches[0], self.sizes[0]
        if size is None or size <= most:
            return batch, size
        return examples_of(batch, slice(0, most), size), most

    def pick(self, numbers: Tensor) -> Any:
        """The examples with these numbers, int64 [b], as a batch."""
        return examples_of(self.whole, numbers, len(self))


def detached(batch: Any) -> Any:
    """The batch without the history of its tensors' gradients."""
    return mapped(lambda tensor: tensor.detach(), batch)
