"""Traces a forward by torch.fx so that the graph computes what the forward computes, or refuses.

torch.fx alone records `y += x` as `y + x`, keeps what a forward computes from constants or draws at random, and calls
no module whose forward decides on values.
"""

from __future__ import annotations

import copy
import operator
import random
import sys
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import Attribute
from torch.nn.modules.batchnorm import _BatchNorm

from nft_ext._common.checks import fail
from nft_ext.nn import NoisyLayer

_OWN = {"node", "tracer", "root", "attr", "_node"}  # what torch.fx sets on its values
_CONTAINERS = (dict, list, set, OrderedDict)
_IN_PLACE = "iadd iand ifloordiv ilshift imatmul imod imul ior ipow irshift isub itruediv ixor"


def in_place(operation: str, left: Any, right: Any) -> Any:
    """An augmented assignment: in_place("iadd", left, right) is `left += right`, and returns the new left."""
    # Not operator.iadd itself: torch.fx writes that as a statement, which would rebind other names of a number.
    return getattr(operator, operation)(left, right)


def reason_of(error: Exception) -> str:
    """The first line of an error of a traced forward."""
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}".removesuffix(": ")


def must_be_tensor(value: Any) -> None:
    """Refuses a value that a traced `isinstance` took for a tensor."""
    if not isinstance(value, Tensor):
        fail(
            "model", "must get tensors where its forward asked for the type when fused", type(value).__name__, TypeError
        )


def must_be_none(value: Any, argument: str) -> None:
    """Refuses an optional input: the model was traced without it."""
    if value is not None:
        fail(
            argument, "must be None in a fused model, it was traced with this default", type(value).__name__, TypeError
        )


class _Value(fx.Proxy):
    """A value of the traced forward. In-place operations are recorded as such, changes of attributes refused."""

    def __getattr__(self, name: str) -> Attribute:
        return _AttributeOf(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _OWN:
            raise TypeError(f"torch.fx cannot record that the forward sets .{name} of a value")
        object.__setattr__(self, name, value)

    def __setitem__(self, index: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})

    @property
    def __class__(self) -> type:  # pyright: ignore[reportIncompatibleMethodOverride]
        """What isinstance sees: a tensor, if the model asks. The graph then checks that."""
        if str(sys._getframe(1).f_globals.get("__name__", "")).partition(".")[0] == "torch":
            return type(self)
        if isinstance(self.tracer, Tracer):
            self.tracer.taken_for_tensors.append(self.node)
        return Tensor


class _AttributeOf(Attribute, _Value):
    """An attribute, read when the model reads it: torch.fx alone reads it when it is used."""

    def __init__(self, root: fx.Proxy, attr: str) -> None:
        super().__init__(root, attr)
        _ = self.node  # records it

    def __call__(self, *args: Any, **kwargs: Any) -> fx.Proxy:
        if self._node is not None and not self._node.users:  # a method
            self.tracer.graph.erase_node(self._node)
            self._node = None
        return super().__call__(*args, **kwargs)


def _augmented(operation: str) -> Any:
    def assign(self: _Value, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", in_place, (operation, self, other), {})

    return assign


for _operation in _IN_PLACE.split():
    setattr(_Value, f"__{_operation}__", _augmented(_operation))


class Tracer(fx.Tracer):
    """Traces a model. Noisy layers, BatchNorms and modules that cannot be traced are single nodes.

    Attributes:
        untraced: names of the modules that could not be traced, and why; the graph calls them as they are.
        taken_for_tensors: values whose type the forward has asked for.
    """

    proxy_buffer_attributes = True  # otherwise what is computed from buffers alone would be a constant

    def __init__(self) -> None:
        super().__init__()
        self.untraced: dict[str, str] = {}
        self.taken_for_tensors: list[fx.Node] = []
        self._constants: dict[str, tuple[Tensor, int]] = {}
        self._before: dict[nn.Module, dict[str, Any]] = {}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, (NoisyLayer, _BatchNorm)) or super().is_leaf_module(m, module_qualified_name)

    def graph_of(self, root: nn.Module) -> fx.Graph:
        """The graph of the forward of `root`. Tensor attributes become buffers.

        Raises:
            Exception: whatever the forward raises on traced values, or a refusal of `_check_captured`.
        """
        self._register_tensors(root)
        self._before = {m: _state(m) for m in root.modules()}
        versions = [(t, _version(t)) for m in root.modules() for t in _tensors(m)]
        random_states = _random_states()
        graph = self.trace(root)
        self._check_captured(root, versions, random_states)
        self._drop_unused_attributes(graph)
        self._check_types(root, graph)
        self._copy_constants(graph)
        return graph

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Value(node, self)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, fx.Proxy]) -> Any:
        return super().getattr(attr, attr_val, {})  # no cache: its nodes may have been erased by call_module

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """As torch.fx, but a module that cannot be traced is called by the graph."""
        name = self.path_of_module(m)
        before, stack = next(iter(reversed(self.graph.nodes)), None), copy.copy(self.module_stack)
        try:
            found = super().call_module(m, forward, args, kwargs)
            self._check_attributes(m, name)
            return found
        except Exception as error:  # a forward may raise anything on a symbolic input
            for node in reversed(self.graph.nodes):
                if node is before:
                    break
                self.graph.erase_node(node)
            self.module_stack = stack
            for changed in m.modules():
                _restore(changed, self._before[changed])
            self.untraced[name] = reason_of(error)
            return self.create_proxy("call_module", name, args, kwargs)

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list]:
        """As torch.fx, but an input whose default is None is None, and the graph refuses any other value."""
        function, args = super().create_args_for_root(root_fn, is_module, concrete_args)
        return function, [self._without_optional(arg) for arg in args]

    def create_arg(self, a: Any) -> Any:
        """As torch.fx, and remembers the constants."""
        found = super().create_arg(a)
        # type(), because isinstance of a traced value asks for a check.
        if issubclass(type(a), Tensor) and (name := str(getattr(found, "target", ""))).startswith("_tensor_constant"):
            self._constants.setdefault(name, (a, _version(a)))
        return found

    def _without_optional(self, arg: Any) -> Any:
        if not issubclass(type(arg), fx.Proxy) or arg.node.op != "placeholder" or arg.node.args != (None,):
            return arg
        check = self.create_proxy("call_function", must_be_none, (arg, str(arg.node.target)), {})
        check.node.meta["is_wrapped"] = True  # an unpickled graph is traced again
        return None

    def _register_tensors(self, root: nn.Module) -> None:
        for name, module in root.named_modules():
            if module is root or not self.is_leaf_module(module, name):
                for key in [key for key, value in vars(module).items() if isinstance(value, Tensor)]:
                    if not hasattr(type(module), key):
                        module.register_buffer(key, vars(module).pop(key), persistent=False)

    def _check_captured(self, root: nn.Module, versions: list[tuple[Tensor, int]], random_states: list) -> None:
        """Refuses a forward that did something while it was traced, which the graph would not repeat."""
        if not _same(_random_states(), random_states):
            raise ValueError("the forward draws random numbers whose shape and type depend on no input")
        self._check_attributes(root, "")
        memory = [t.untyped_storage().data_ptr() for t, _ in self._constants.values() if t.numel()]
        if len(set(memory)) < len(memory) or any(_version(t) != v for t, v in [*versions, *self._constants.values()]):
            raise ValueError("the forward writes into a tensor that depends on no input, or uses views of it")

    def _check_attributes(self, module: nn.Module, name: str) -> None:
        """Refuses a traced forward that changes its module."""
        if module is self.root or not self.is_leaf_module(module, name):
            now, before = _state(module), self._before[module]
            for key in sorted({*now, *before}):
                if not key.startswith("_tensor_constant") and not _same(now.get(key), before.get(key)):
                    raise ValueError(f"the forward changes the attribute {key} of {name or 'the model'}")

    def _check_types(self, root: nn.Module, graph: fx.Graph) -> None:
        asked = set(self.taken_for_tensors)
        for node in [node for node in graph.nodes if node in asked]:
            if node.op == "call_module" and isinstance(root.get_submodule(str(node.target)), (NoisyLayer, _BatchNorm)):
                continue  # surely a tensor
            with graph.inserting_after(_last_placeholder(node)):
                graph.call_function(must_be_tensor, (node,)).meta["is_wrapped"] = True

    def _drop_unused_attributes(self, graph: fx.Graph) -> None:
        """Drops reads without use, among them questions like hasattr, which a tensor may answer with an error."""
        for node in reversed(graph.nodes):
            if node.op == "call_function" and node.target is getattr and not node.users:
                graph.erase_node(node)

    def _copy_constants(self, graph: fx.Graph) -> None:
        """The forward makes its constants anew in each call, so what may be written into must be a copy."""
        for name in self._constants:
            uses = [node for node in graph.nodes if node.op == "get_attr" and node.target == name]
            first = uses[0]
            with graph.inserting_after(first):
                clone = graph.call_method("clone", (first,))
            for use in uses:
                use.replace_all_uses_with(clone, delete_user_cb=lambda user, clone=clone: user is not clone)
            for use in uses[1:]:
                graph.erase_node(use)


def _last_placeholder(node: fx.Node) -> fx.Node:
    """Where a check of `node` may stand: inputs must come first in a graph."""
    while node.op == "placeholder" and node.next.op == "placeholder":
        node = node.next
    return node


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from (t for t in (*module._parameters.values(), *module._buffers.values()) if t is not None)


def _version(t: Tensor) -> int:
    return 0 if t.is_inference() else t._version


def _state(module: nn.Module) -> dict[str, Any]:
    return {key: copy.copy(v) if type(v) in _CONTAINERS else v for key, v in vars(module).items()}


def _restore(module: nn.Module, state: dict[str, Any]) -> None:
    vars(module).clear()
    vars(module).update({key: copy.copy(v) if type(v) in _CONTAINERS else v for key, v in state.items()})


def _random_states() -> list[Any]:
    states: list[Any] = [torch.get_rng_state().tolist(), random.getstate()]
    if torch.cuda.is_initialized():
        states += [state.tolist() for state in torch.cuda.get_rng_state_all()]
    if (numpy := sys.modules.get("numpy")) is not None:
        states.append([part.tolist() if hasattr(part, "tolist") else part for part in numpy.random.get_state()])
    return states


def _same(a: Any, b: Any) -> bool:
    """Whether two attributes hold the same. Values of a trace and tensors are the same only if identical."""
    if a is b:
        return True
    if type(a) is not type(b) or issubclass(type(a), (fx.Proxy, Tensor)):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(_same, a, b))
    return type(a) in (int, float, str, bool, bytes, set, frozenset) and bool(a == b)
