"""Describes any Python value as JSON, so that two processes can tell whether they have the same one."""

from __future__ import annotations

import dataclasses
import enum
import functools
import json
import math
import sys
import types
from collections.abc import Collection, Iterator, Mapping
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nft_ext._common.code_identity import (
    DIGITS,
    by_name,
    callable_text,
    class_text,
    digest,
    home_of,
    name_of,
    private_names,
    root_of,
)
from nft_ext._common.tensor_hash import tensor_hash

LONGEST = 200  # characters of JSON kept as they are; a longer value becomes a hash
MOST_FIELDS = 30  # of an object with more, only a hash is kept
_SCALAR = (bool, int, str, type(None))
_TEXT = (torch.dtype, torch.layout, torch.memory_format, complex, range, PurePath)
_PLACES = (torch.device, torch.Generator)  # where something is computed, not what
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_CONTAINERS = (list, tuple, dict, set, frozenset)


class Describer:
    """Makes the descriptions of one network or training.

    Args:
        names: id of a module -> its name in the network. Such a module is described by its name.

    Attributes:
        unread: types of values that cannot be described. They count by their type alone.
    """

    def __init__(self, names: Mapping[int, str] | None = None) -> None:
        self.names = dict(names or {})
        self.unread: set[str] = set()
        self._inside: list[int] = []  # objects under description: a cycle ends at them
        self._known: dict[int, tuple[Any, Any]] = {}  # id -> (object, description); holding it keeps its id its own

    def __call__(self, value: Any) -> Any:
        """`value` as JSON. Equal values give equal JSON in every process."""
        if type(value) in _SCALAR:
            return value
        if isinstance(value, float):
            return float(value) if math.isfinite(value) else repr(float(value))
        if isinstance(value, enum.Enum):
            return f"{type(value).__qualname__}.{value.name}"
        if isinstance(value, _TEXT):
            return str(value)
        if isinstance(value, _PLACES):
            return f"a torch.{type(value).__name__}"
        if id(value) in self._known:
            return self._known[id(value)][1]
        if id(value) in self._inside:
            return f"what is {len(self._inside) - self._inside.index(id(value))} levels up"
        self._inside.append(id(value))
        try:
            found = self._nested(value)
        except Exception:  # whatever an attribute of other people's classes raises
            found = self._unreadable(value)
        finally:
            self._inside.pop()
        if type(value) not in _CONTAINERS:
            self._known[id(value)] = value, found
        return found

    def short(self, value: Any) -> Any:
        """The description of `value`, with hashes in place of long parts."""
        found = self(value)
        if isinstance(found, dict) and len(found) <= MOST_FIELDS:
            return {name: _shortened(entry) for name, entry in found.items()}
        return _shortened(found)

    def _nested(self, value: Any) -> Any:
        if isinstance(value, type):
            return class_text(value, self)
        if isinstance(value, Tensor):
            return tensor_text(value)
        if isinstance(value, (np.ndarray, np.generic)) and value.dtype != object:
            return f"numpy {value.dtype}{list(np.shape(value))} {digest(np.ascontiguousarray(value).tobytes())}"
        if isinstance(value, (bytes, bytearray)):
            return f"{len(value)} bytes {digest(bytes(value))}"
        if isinstance(value, nn.Module) and id(value) in self.names:
            return f"the layer {self.names[id(value)]!r}"
        if callable(value) and (found := callable_text(value, self)) is not None:
            return found
        if isinstance(value, nn.Module):
            tensors = {**value._parameters, **value._buffers}
            held = {name: self(part) for name, part in {**tensors, **dict(value.named_children())}.items()}
            return {"class": self(type(value)), **attributes(value, self), **held}
        if (own := getattr(value, "describe", None)) and root_of(type(value).__module__) == "nft_ext":
            return {"class": self(type(value)), **own()}  # of a device: without fields at their defaults
        content = self._content(value)
        if type(value) in _CONTAINERS:
            return content
        fields = {"class": self(type(value))} | ({} if content is None else {"content": content})
        if root_of(type(value).__module__) in sys.stdlib_module_names or not hasattr(value, "__dict__"):
            return fields | (self._slots(value) or self._reduced(value) if content is None else {})
        return fields | dict(self._fields(value))

    def _content(self, value: Any) -> Any:
        if isinstance(value, Mapping):
            pairs = ((self(key), self(entry)) for key, entry in value.items())
            return {key if isinstance(key, str) else json.dumps(key): entry for key, entry in pairs}
        if isinstance(value, (list, tuple)):
            return [self(entry) for entry in value]
        if isinstance(value, (set, frozenset)):
            return sorted((self(entry) for entry in value), key=json.dumps)
        return None

    def _fields(self, value: Any) -> Iterator[tuple[str, Any]]:
        """The attributes of an object. Private ones of torch's and our classes do not count."""
        public = by_name(type(value).__module__)
        held = {**self._slots(value), **vars(value)}
        for name, entry in sorted(held.items()):
            if not (public and name.startswith("_")):
                yield name, self(entry)

    def _slots(self, value: Any) -> dict[str, Any]:
        names = [vars(kind).get("__slots__", ()) for kind in type(value).__mro__]
        flat = [name for each in names for name in ([each] if isinstance(each, str) else each)]
        if dataclasses.is_dataclass(value):
            flat += [field.name for field in dataclasses.fields(value)]
        return {n: self(getattr(value, n)) for n in flat if hasattr(value, n) and not n.startswith("__")}

    def _reduced(self, value: Any) -> dict[str, Any]:
        """What pickle would store."""
        reduced = value.__reduce_ex__(4)
        if isinstance(reduced, str):
            return {"value": reduced}
        parts = [list(part) if isinstance(part, types.GeneratorType) else part for part in reduced]
        return {"value": [self(part) for part in parts]}

    def _unreadable(self, value: Any) -> str:
        self.unread.add(name_of(type(value)))
        return f"an unreadable {name_of(type(value))}"


def _shortened(found: Any) -> Any:
    return found if len(json.dumps(found)) <= LONGEST else f"a {type(found).__name__} {digest(found)}"


def tensor_text(tensor: Tensor) -> str:
    """Type, shape and a hash over the values."""
    shape = f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
    return shape if tensor.is_meta else f"tensor {shape} {tensor_hash([(None, tensor)])[:DIGITS]}"


def attributes(module: nn.Module, describe: Describer, left_out: Collection[str] = ()) -> dict[str, Any]:
    """What a module holds beside its children, parameters and persistent buffers, by name.

    Args:
        module: of torch and nft_ext, the public attributes count; of other classes the private ones, too.
        describe: describes the values.
        left_out: names of attributes of nft_ext's modules that do not count.
    """
    ours = any(root_of(kind.__module__) == "nft_ext" for kind in type(module).__mro__)
    of_others = private_names(type(module))
    found: dict[str, Any] = {}
    for name, value in vars(module).items():
        private = name.startswith("_") and (of_others is None or name in of_others)
        if not (private or name in module_state() or (ours and name in left_out)):
            found[name] = describe.short(value)
    for name in sorted(module._non_persistent_buffers_set):
        if not (name.startswith("_") and ours):
            found[name] = describe.short(module._buffers.get(name))
    hooks = [hook for name in _HOOKS for hook in (getattr(module, name, None) or {}).values()]
    if others := [hook for hook in hooks if root_of(home_of(hook)) != "nft_ext"]:  # ours are of contexts
        found["hooks"] = describe.short(others)
    if isinstance(module, (torch.fx.GraphModule, torch.jit.ScriptModule)):
        found["code"] = digest(str(module.code))
    if type(module).get_extra_state is not nn.Module.get_extra_state:
        found["extra state"] = describe.short(module.get_extra_state())
    return found


@functools.cache
def module_state() -> frozenset[str]:
    """What every torch.nn.Module holds, and what compiling one adds."""
    return frozenset(vars(nn.Module())) | {"_compiled_call_impl", "dynamo_ctx"}
