"""Training data of any structure: tensors in memory, items that `fit` collates, or a loader that makes the batches."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, default_collate

from nft_ext._common.checks import fail
from nft_ext.nn.chip_inputs import tensors_of
from nft_ext.training.batches import _in_memory, _is_map_style
from nft_ext.training.randomness import seed_at, seed_torch

Collate = Callable[[list[Any]], Any]  # items -> batch


class TaskBatches:
    """A data set that gives any batch by index. A batch has the structure that the data set gives it.

    Args:
        argument: the caller's name of the data set, for error messages.
        data: in memory, sliced: an ImageSet, a TensorDataset or a tuple of tensors; its batches are tuples. Or a
            map-style data set, collated item by item: items may be tuples, dicts, ... Or a DataLoader or another
            iterable of batches with a length: one "index" is then one batch.
        collate: items -> batch, for a map-style data set; other data have no use for it. None: numbers, lists of
            numbers and tensors are stacked.

    Raises:
        TypeError: data is none of these.
        ValueError: data is empty, tensors differ in length, or a loader has a generator of its own.
    """

    def __init__(self, argument: str, data: Any, collate: Collate | None = None) -> None:
        self.argument, self.items, self.collate = argument, data, collate
        self.tensors = _tensors_of(data)
        indexed = isinstance(data, list) or (_is_map_style(data) and not isinstance(data, Mapping))
        self.collates = self.tensors is None and indexed
        self.loader = self.tensors is None and not self.collates
        if self.loader:
            _check_loader(argument, data)
        if self.tensors is not None and len({len(tensor) for tensor in self.tensors}) != 1:
            fail(argument, "must hold tensors of one length", [len(tensor) for tensor in self.tensors])
        if len(self) == 0:
            fail(argument, "must hold at least one example", "an empty data set")
        self._iterator: Iterator[Any] | None = None
        self._next = 0
        self._pass: tuple[int, int] | None = None

    def __len__(self) -> int:
        """Number of examples; of a loader, the number of batches."""
        return len(self.items if self.tensors is None else self.tensors[0])

    def begin(self, seed: int, epoch: int) -> None:
        """Starts an epoch. A loader draws its order and its items' random numbers from seed, epoch and batch."""
        self._iterator, self._next, self._pass = None, 0, (seed, epoch)

    def take(self, indices: Tensor) -> Any:
        """The batch of the examples `indices [B]`. Of a loader: the batch of that number, in rising order."""
        if self.loader:
            return self._batch(int(indices[0]))
        if self.tensors is not None:
            return tuple(tensor[indices] for tensor in self.tensors)
        items = [self.items[i] for i in indices.tolist()]
        return self._collated(items) if self.collate is None else self.collate(items)

    def example(self) -> Any:
        """A small batch: of a loader its first one, of others up to three examples."""
        if not self.loader:
            return self.take(torch.arange(min(3, len(self))))
        self.begin(0, 0)
        found = self._batch(0)
        self._iterator = None
        return found

    def sample(self, indices: Tensor) -> list[Tensor]:
        """The tensors of some examples, or of a loader's first batch, to identify the data."""
        return tensors_of(self.example() if self.loader else self.take(indices))

    def _batch(self, number: int) -> Any:
        assert self._pass is not None, "begin comes first"
        if self._iterator is None or number < self._next:
            self._next, self._iterator = 0, None
        found = None
        while self._next <= number:
            seed_torch(seed_at(self._pass[0], "loader", self._pass[1], self._next), torch.device("cpu"))
            if self._iterator is None:
                self._iterator = iter(self.items)  # seeded, because workers take their seeds here
            try:
                found = next(self._iterator)
            except StopIteration:
                rule = f"must give as many batches as its length says, {len(self)}, in every epoch"
                fail(self.argument, rule, self._next)
            self._next += 1
        return found

    def _collated(self, items: list[Any]) -> Any:
        try:
            return default_collate([_with_tensors(item) for item in items])
        except (RuntimeError, TypeError) as error:
            rule = "must have items that can be stacked: give collate=, which pads or chooses, or a DataLoader"
            kind = TypeError if isinstance(error, TypeError) else ValueError
            fail(self.argument, rule, str(error).splitlines()[0], kind)


def is_plain(data: Any) -> bool:
    """Whether the data are (image, label) pairs by index, as `Batches` takes them."""
    if _in_memory(data) is not None:
        return True
    if isinstance(data, (TensorDataset, Mapping)) or not _is_map_style(data):
        return False
    if len(data) == 0:
        return True  # refused as ever
    with torch.random.fork_rng(devices=[]):
        item = data[0]
    return isinstance(item, (tuple, list)) and len(item) == 2


def _tensors_of(data: Any) -> tuple[Tensor, ...] | None:
    if (pair := _in_memory(data)) is not None:
        return pair
    held = data.tensors if isinstance(data, TensorDataset) else data
    if isinstance(held, tuple) and held and all(isinstance(t, Tensor) and t.dim() > 0 for t in held):
        return tuple(held)
    return None


def _check_loader(argument: str, data: Any) -> None:
    """Refuses what gives no batches, not in every epoch, or in an order that no seed repeats."""
    if isinstance(data, (str, bytes, Mapping, tuple, Iterator)) or not hasattr(data, "__iter__"):
        rule = (
            "must be a map-style Dataset, a tuple of tensors, or a DataLoader or iterable that begins anew each epoch"
        )
        fail(argument, rule, _kind(data), TypeError)
    if isinstance(data, IterableDataset):
        fail(argument, "must be in a DataLoader, which makes batches of its items", _kind(data), TypeError)
    try:
        len(data)
    except TypeError:
        rule = "must have a length, the number of batches per epoch, which the learning rate's schedule needs"
        fail(argument, rule, _kind(data), TypeError)
    if isinstance(data, DataLoader):
        sampler = getattr(data.batch_sampler, "sampler", data.sampler)
        if data.generator is not None or getattr(sampler, "generator", None) is not None:
            rule = "must shuffle by torch's own generator, which fit seeds, so that a training can be continued"
            fail(argument, rule, "a DataLoader with generator=")


def _with_tensors(item: Any) -> Any:
    """An item whose lists of numbers are tensors. torch's collate would turn them into a list of columns."""
    if isinstance(item, Mapping):
        found = copy.copy(item) if not isinstance(item, dict) else dict(item)
        return {key: _with_tensors(value) for key, value in found.items()}
    if _numbers(item):
        return torch.tensor(item)
    return tuple(map(_with_tensors, item)) if isinstance(item, (tuple, list)) else item


def _numbers(value: Any) -> bool:
    if not isinstance(value, list) or not value:
        return False
    return all(_numbers(entry) if isinstance(entry, list) else isinstance(entry, (int, float)) for entry in value)


def _kind(data: Any) -> str:
    return type(data).__name__
