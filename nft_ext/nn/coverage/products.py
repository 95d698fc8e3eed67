"""Which parameters a forward multiplies activations by, and with how many multiply-accumulates.

Every operator is seen below autograd. A tensor that is made of parameters alone (a view, a cast, a weight norm, an
expert's rows) still stands for them. A tensor that depends on an input, or on a looked-up row, is an activation.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nft_ext.nn.coverage.operators import EMBEDDINGS, JOINS, PRODUCTS, ROWS, VECTORS
from nft_ext.nn.coverage.parameters import MATRIX, Held, held_by


@dataclass
class Reads:
    """How a forward read one parameter.

    Attributes:
        macs: multiply-accumulates with activations, with and without noise.
        noisy_macs: those with the noise of a crossbar.
        layer_macs: those inside the forward of the module that holds the parameter.
        ways: "product", "lookup", "element" (added, scaled or joined), "input" (of a layer, as a learned query) or
            "other".
    """

    macs: int = 0
    noisy_macs: int = 0
    layer_macs: int = 0
    ways: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class _Value:
    """What a tensor stands for."""

    sources: frozenset[int] = frozenset()  # indices of parameters
    activation: bool = False
    itself: bool = False  # the parameter's own memory
    noisy: bool = False
    scaled: frozenset[int] = frozenset()  # parameters that an activation was multiplied by, element by element


_NOTHING = _Value()
_DEPTH = 6  # of containers in an argument


class Products(TorchDispatchMode):
    """Notes in `reads` how the parameters of `held` are read. None for those without plain memory, as sharded ones."""

    def __init__(self, held: list[Held]) -> None:
        super().__init__()
        self.held = held
        self.reads: list[Reads | None] = [None] * len(held)
        self.inside: Counter[int] = Counter()  # index -> calls in progress of the module that holds it
        self.spans: dict[int, list[tuple[int, int, int]]] = {}  # memory -> (first byte, end, index)
        self.values: dict[int, tuple[StorageWeakRef, _Value]] = {}
        for index, h in enumerate(held):
            p = h.parameter
            if p is not None and (key := _memory(p)) is not None:
                first = int(p.storage_offset()) * p.element_size()
                self.spans.setdefault(key, []).append((first, first + p.nbytes, index))
                self.reads[index] = Reads()

    def feed(self, *inputs: Any) -> None:
        """Marks the tensors of a call's arguments as activations."""
        for tensor in _tensors(inputs, _DEPTH):
            self._set(tensor, _Value(activation=True))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._schema.name
        product = PRODUCTS.get(name)
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if name == "nft_ext::program_many":
            for weight, programmed in zip(args[0], out):
                self._set(programmed, _Value(self._of(weight).sources, noisy=True))
            return out
        if name == "nft_ext::program":
            value = _Value(self._of(args[0]).sources, noisy=True)
        elif product is not None:
            value = self._product(product(args, out), name.startswith("nft_ext::"), name in VECTORS)
        elif name in EMBEDDINGS or name in ROWS:
            value = self._lookup(self._of(args[0]), [self._of(t) for t in tensors[1:]], name in EMBEDDINGS)
        elif not tensors or name.endswith("_like") or name.startswith("aten::new_"):
            value = _NOTHING
        else:
            pointwise = torch.Tag.pointwise in func.tags
            value = self._mix([self._of(t) for t in tensors], pointwise or name in JOINS, name.startswith("aten::mul"))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._set(leaf, value)
        return out

    def _product(self, operands: list[tuple[Tensor, int, bool]], noisy: bool, vector: bool) -> _Value:
        values = [(self._of(tensor), macs, weight) for tensor, macs, weight in operands]
        weights = [(v, macs) for v, macs, _ in values if v.sources and not v.activation]
        weights += [(_Value(v.scaled), macs) for v, macs, weight in values if weight and v.activation and v.scaled]
        if not any(v.activation for v, _, _ in values):
            # Constants and parameters alone: a layer on learned queries or zeros, or a product that makes a weight.
            weights = [(v, macs) for v, macs in weights if (v.itself or v.noisy) and self._is_layers(v)]
            others = [v for v, _, _ in values if not any(v is w for w, _ in weights)]
            if not weights or not others or (vector and not any(v.sources for v in others)):
                return self._mix([v for v, _, _ in values], False, False)
            for i in frozenset().union(*(v.sources for v in others)):
                self._read(i).ways.add("input")
        for v, macs in weights:
            self._multiplied(v, macs, noisy or v.noisy)
        return _Value(activation=True)

    def _multiplied(self, value: _Value, macs: int, noisy: bool) -> None:
        """Notes a product. What it takes counts once, for the largest parameter that the operand is made of."""
        largest = max(value.sources, key=lambda i: self.held[i].cells)
        for i in value.sources:
            if value.itself or i == largest or self.held[i].role == MATRIX:
                self._read(i).ways.add("product")
        reads = self._read(largest)
        reads.macs += macs
        reads.noisy_macs += macs if noisy else 0
        reads.layer_macs += macs if self.inside[largest] else 0

    def _lookup(self, table: _Value, others: list[_Value], embedding: bool) -> _Value:
        if table.activation or not table.sources:
            return self._mix([table, *others], False, False)
        if not embedding and self._is_matrix(table):
            return _Value(table.sources, noisy=table.noisy)  # the matrices of the chosen experts
        for i in table.sources:
            self._read(i).ways.add("lookup")
        return _Value(activation=True)

    def _mix(self, values: list[_Value], by_element: bool, multiplied: bool) -> _Value:
        scaled = frozenset().union(*(v.scaled for v in values))
        if not any(v.activation for v in values):
            return _Value(frozenset().union(*(v.sources for v in values)), noisy=any(v.noisy for v in values))
        for v in values:
            if v.activation:
                continue
            for i in v.sources:
                self._read(i).ways.add("element" if by_element else "other")
            if multiplied and v.sources and self._is_matrix(v):
                scaled |= v.sources
        return _Value(activation=True, scaled=scaled)

    def _read(self, index: int) -> Reads:
        return cast("Reads", self.reads[index])  # of a parameter that tensors lead to

    def _is_matrix(self, value: _Value) -> bool:
        return all(self.held[i].role == MATRIX for i in value.sources)

    def _is_layers(self, value: _Value) -> bool:
        """Whether it is the weight of a layer that is known to multiply, and not what a weight is made of."""
        return all(self.held[i].certain and self.held[i].remade is None for i in value.sources) and self._is_matrix(
            value
        )

    def _of(self, tensor: Tensor) -> _Value:
        key = _memory(tensor)
        if key is None:
            return _NOTHING
        if (spans := self.spans.get(key)) is not None:
            first = tensor.storage_offset() * tensor.element_size()
            found = next((index for start, end, index in spans if start <= first < end), None)
            return _NOTHING if found is None else _Value(frozenset((found,)), itself=True)
        held = self.values.get(key)
        return _NOTHING if held is None else held[1]

    def _set(self, tensor: Tensor, value: _Value) -> None:
        key = _memory(tensor)
        if key is None or key in self.spans:
            return
        if value is _NOTHING:
            self.values.pop(key, None)
            return
        # The weak reference keeps the address from being used again.
        self.values[key] = StorageWeakRef(tensor.untyped_storage()), value


def _tensors(value: Any, depth: int) -> Iterator[Tensor]:
    """The tensors in an argument: in lists, mappings and attributes of objects, as batches of model libraries are."""
    if isinstance(value, Tensor):
        yield value
    elif depth and not isinstance(value, (str, bytes, type, nn.Module)):
        items = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple, set)) else ()
        for item in (*items, *getattr(value, "__dict__", {}).values()):
            yield from _tensors(item, depth - 1)


def _memory(tensor: Tensor) -> int | None:
    """The address of the tensor's storage object, which views share; None without plain memory."""
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout is not torch.strided or tensor.is_nested:
        return None
    return tensor.untyped_storage()._cdata


@contextlib.contextmanager
def products_of(model: nn.Module) -> Iterator[Products]:
    """Notes how the forwards inside read the parameters of `model`. Inputs of the model are activations.

    Raises:
        ValueError: a lazy parameter has no shape yet.
    """
    mode = Products(held_by(model))

    def begins(module: nn.Module, args: Any, kwargs: Any) -> None:
        mode.feed(args, kwargs)

    with contextlib.ExitStack() as stack:
        # torch's fused attention hides its products, and would skip the noise.
        stack.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
        torch.backends.mha.set_fastpath_enabled(False)
        stack.callback(model.register_forward_pre_hook(begins, with_kwargs=True).remove)
        for index, held in enumerate(mode.held):
            if held.convertible and not held.noisy:
                _count_calls(held.module, index, mode.inside, stack)
        stack.enter_context(mode)
        yield mode


def _count_calls(module: nn.Module, index: int, inside: Counter[int], stack: contextlib.ExitStack) -> None:
    def enter(*_: Any) -> None:
        inside[index] += 1

    def leave(*_: Any) -> None:
        inside[index] -= 1

    stack.callback(module.register_forward_pre_hook(enter).remove)
    stack.callback(module.register_forward_hook(leave, always_call=True).remove)
