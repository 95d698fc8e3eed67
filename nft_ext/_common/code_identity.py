"""The identity of code: functions and classes as short texts that two processes can compare.

Other people's code counts by its bytecode, constants, closures, defaults and the globals that it names. Code of torch,
nft_ext, numpy and the standard library counts by its qualified name, so a new release does not refuse older files.
"""

from __future__ import annotations

import dis
import functools
import hashlib
import inspect
import json
import sys
import types
from collections.abc import Callable
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nft_ext._common.moved import MOVED

DIGITS = 12  # hex digits kept of a hash
PYTHON = f"Python {sys.version_info.major}.{sys.version_info.minor}"  # bytecode differs between these versions
BY_NAME = frozenset({"torch", "nft_ext", "numpy", *sys.stdlib_module_names})
INSTALLED = ("site-packages", "dist-packages")
_FOLLOWED = (bool, int, float, complex, str, bytes, type(None), torch.dtype, PurePath, Tensor, np.ndarray)
_FOLLOWED += (list, tuple, dict, set, frozenset)
_NO_CODE = {"__weakref__", "__dict__", "_abc_impl"}

Value = Callable[[Any], Any]  # describes any value as JSON


def root_of(module: str | None) -> str:
    """The package of a module: "torch" for "torch.nn.modules.linear"."""
    return (module or "builtins").partition(".")[0]


def by_name(module: str | None) -> bool:
    """Whether code of that module counts by its qualified name."""
    return root_of(module) in BY_NAME


def name_of(kind: type) -> str:
    """The qualified name of a class. A class of nft_ext that moved has its present name."""
    return f"{MOVED.get(kind.__module__, kind.__module__)}.{kind.__qualname__}"


def home_of(function: Any) -> str:
    """The module in which a function or a callable object was written."""
    if isinstance(function, types.MethodType):
        return home_of(function.__func__)
    known = getattr(function, "__globals__", None) or {}
    return known.get("__name__") or getattr(function, "__module__", None) or type(function).__module__


def digest(content: Any) -> str:
    """The first hex digits of a hash over bytes or JSON."""
    raw = content if isinstance(content, bytes) else json.dumps(content, sort_keys=True).encode()
    return hashlib.sha256(raw).hexdigest()[:DIGITS]


def callable_text(function: Any, value: Value) -> Any:
    """A function, method or operator as JSON. None for other callable objects.

    Args:
        function: anything callable.
        value: describes closures, defaults and globals.
    """
    if isinstance(function, types.FunctionType):
        compiled = getattr(function, "_torchdynamo_orig_callable", None)
        return _function(function, value) if compiled is None else value(compiled)
    if isinstance(function, types.MethodType):
        return [value(function.__func__), value(function.__self__)]
    if isinstance(function, functools.partial):
        return ["partial", value(function.func), value(function.args), value(function.keywords)]
    if isinstance(function, torch.jit.ScriptFunction):
        return f"script {digest(function.code)}"
    if isinstance(function, (types.BuiltinFunctionType, types.MethodWrapperType, np.ufunc)):
        owner = getattr(function, "__self__", None)
        name = f"{home_of(function)}.{getattr(function, '__qualname__', function.__name__)}"
        return [name, value(owner)] if isinstance(owner, Tensor) else name
    if type(function).__module__ == "torch._ops":
        return str(function)
    if hasattr(function, "__wrapped__"):  # functools.cache and its like
        return [name_of(type(function)), value(function.__wrapped__)]
    return None


PLAIN = "_nft_ext_plain"  # in a class that nft_ext.nn makes of a module's class: that class


def class_text(kind: type, value: Value) -> str:
    """A class: its qualified name, or its name and a hash over its bases, functions and constants."""
    if (plain := vars(kind).get(PLAIN)) is not None:
        return f"noisy {class_text(plain, value)}"
    if by_name(kind.__module__):
        return name_of(kind)
    members = {name: _member(name, member, value) for name, member in sorted(vars(kind).items())}
    content = [[value(base) for base in kind.__bases__], members]
    return f"class {kind.__qualname__} {digest(content)} ({PYTHON})"


@functools.cache
def private_names(kind: type) -> frozenset[str] | None:
    """Private attributes that belong to torch or nft_ext in a class of other people. None: all private ones do."""
    if by_name(kind.__module__):
        return None
    bases = [base for base in kind.__mro__ if by_name(base.__module__) and base not in (nn.Module, object)]
    functions = [f for base in bases for f in vars(base).values() if isinstance(f, types.FunctionType)]
    return frozenset(name for function in functions for name in _names_in(function.__code__))


def _function(function: types.FunctionType, value: Value) -> Any:
    home, code = function.__globals__.get("__name__", ""), function.__code__
    cells = zip(code.co_freevars, function.__closure__ or (), strict=True)
    closure = {name: _cell(cell, value) for name, cell in cells if name != "__class__"}
    if by_name(home):  # a decorator of torch holds the function that it wraps in its closure
        name = f"{MOVED.get(home, home)}.{function.__qualname__}"
        return [name, digest(closure)] if closure else name
    defaults = [value(function.__defaults__), value(function.__kwdefaults__)]
    named = {} if _installed(home) else _globals(function, value)
    content = [_code(code, function.__doc__), closure, defaults, named]
    return f"function {function.__qualname__} {digest(content)} ({PYTHON})"


def _cell(cell: types.CellType, value: Value) -> Any:
    try:
        held = cell.cell_contents
    except ValueError:
        return "empty"
    return value(held)


def _globals(function: types.FunctionType, value: Value) -> dict[str, Any]:
    known, names = function.__globals__, _names_in(function.__code__)
    loaded = sorted(_loaded(function.__code__))
    return {name: _global(known[name], names, value, 0) for name in loaded if name in known}


def _global(held: Any, names: frozenset[str], value: Value, depth: int) -> Any:
    """A global of a function. Of a module or an object, only the attributes that the function names count."""
    if isinstance(held, types.ModuleType) and (by_name(held.__name__) or _installed(held.__name__)):
        return held.__name__
    if isinstance(held, _FOLLOWED) or callable(held):
        return value(held)
    kind = "a module" if isinstance(held, types.ModuleType) else value(type(held))
    inner = getattr(held, "__dict__", {}) if depth < 3 else {}
    return [kind, {name: _global(inner[name], names, value, depth + 1) for name in sorted(names) if name in inner}]


def _member(name: str, member: Any, value: Value) -> Any:
    """An attribute of a class."""
    if isinstance(member, (staticmethod, classmethod)):
        return [type(member).__name__, value(member.__func__)]
    if isinstance(member, property):
        return [value(part) for part in (member.fget, member.fset)]
    if name in _NO_CODE or inspect.isdatadescriptor(member):
        return None
    if name.startswith("__") and (not isinstance(member, types.FunctionType) or name.startswith("__annotate")):
        return None  # documentation, annotations and what decorators leave
    return value(member)


def _installed(module: str) -> bool:
    """Whether a module comes from an installed package. Its globals are not followed."""
    file = getattr(sys.modules.get(module), "__file__", None) or ""
    return any(folder in file for folder in INSTALLED)


def _code(code: types.CodeType, documentation: str | None = None) -> list[Any]:
    """Bytecode and constants, without line numbers, file names, local names and the documentation."""
    constants = code.co_consts
    if constants and documentation is not None and constants[0] == documentation:
        constants = (None, *constants[1:])
    return [code.co_code.hex(), [_constant(constant) for constant in constants], list(code.co_names), code.co_flags]


def _constant(constant: Any) -> Any:
    if isinstance(constant, types.CodeType):
        return _code(constant)
    if isinstance(constant, frozenset):
        return sorted(map(repr, constant))  # the order of a set of strings changes from process to process
    return repr(constant)


@functools.cache
def _names_in(code: types.CodeType) -> frozenset[str]:
    """Every global and attribute that the code names."""
    inner = (_names_in(constant) for constant in code.co_consts if isinstance(constant, types.CodeType))
    return frozenset(code.co_names).union(*inner)


@functools.cache
def _loaded(code: types.CodeType) -> frozenset[str]:
    """Every global that the code loads."""
    own = {str(i.argval) for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    inner = (_loaded(constant) for constant in code.co_consts if isinstance(constant, types.CodeType))
    return frozenset(own).union(*inner)
