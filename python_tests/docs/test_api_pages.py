"""Every public name has an entry on the API pages, made from a docstring that says what goes in and what goes wrong."""

import ast
import dataclasses
import importlib
import inspect
import re
import textwrap
from pathlib import Path

import pytest

import nft_ext

API = Path(__file__).parents[2] / "docs" / "reference" / "api"
PACKAGES = (
    "nft_ext",
    "nft_ext.data",
    "nft_ext.methods",
    "nft_ext.metrics",
    "nft_ext.models",
    "nft_ext.montecarlo",
    "nft_ext.training",
)
MODULES = {"data", "methods", "metrics", "models", "reference"}  # of nft_ext.__all__
CHECKS = {"fail", "integer", "number", "boolean"}  # nft_ext._common.checks: each raises where its argument is bad
DIRECTIVE = re.compile(r"^\.\. (?:auto(function|class|module)|py:(data)):: (\S+)$", re.MULTILINE)


def entries():
    """name -> kind of every entry on the API pages."""
    found = {}
    for page in sorted(API.glob("*.md")):
        for auto, manual, name in DIRECTIVE.findall(page.read_text()):
            assert name not in found, f"{name} has two entries"
            found[name] = auto or manual
    return found


ENTRIES = entries()


def resolved(name, kind):
    """The object called `name`."""
    module, _, attribute = name.rpartition(".")
    return importlib.import_module(name) if kind == "module" else getattr(importlib.import_module(module), attribute)


DOCUMENTED = {name: resolved(name, kind) for name, kind in ENTRIES.items() if kind != "data"}


def public():
    for package in PACKAGES:
        module = importlib.import_module(package)
        for name in module.__all__:
            yield package, name, getattr(module, name)


@pytest.mark.parametrize("package, name, value", list(public()), ids=lambda v: v if isinstance(v, str) else "")
def test_every_public_name_has_an_entry(package, name, value):
    if package == "nft_ext" and name in MODULES:
        assert f"nft_ext.{name}" in PACKAGES or ENTRIES.get(f"nft_ext.{name}") == "module"
    elif inspect.isclass(value) or inspect.isroutine(value):
        assert any(value is other for other in DOCUMENTED.values()), (
            f"{package}.{name} has no entry in docs/reference/api"
        )
    else:
        assert ENTRIES.get(f"{package}.{name}") == "data", (
            f"{package}.{name} has no py:data entry in docs/reference/api"
        )


def test_every_module_of_the_list_is_public():
    assert set(nft_ext.__all__) >= MODULES


# ---- docstrings


def documented_functions():
    """(name, function) of every function on the pages, and of every public method and property of a class."""
    for name, value in DOCUMENTED.items():
        if inspect.isclass(value):
            for member, held in vars(value).items():
                function = getattr(held, "fget", None) or getattr(held, "__func__", held)
                if not member.startswith("_") and inspect.isfunction(function):
                    yield f"{name}.{member}", function
        elif inspect.ismodule(value):
            yield from (
                (f"{name}.{k}", v)
                for k, v in vars(value).items()
                if inspect.isfunction(v) and v.__module__ == name and not k.startswith("_")
            )
        else:
            yield name, inspect.unwrap(value)


FUNCTIONS = dict(documented_functions())
CLASSES = {name: value for name, value in DOCUMENTED.items() if inspect.isclass(value)}


def body(function):
    return ast.parse(textwrap.dedent(inspect.getsource(function)))


def raises(function):
    """Whether the function itself raises, or checks an argument."""
    for node in ast.walk(body(function)):
        if isinstance(node, ast.Raise) and node.exc is not None:
            return True
        if isinstance(node, ast.Call) and getattr(node.func, "id", None) in CHECKS:
            return True
    return False


def arguments(function):
    return [p for p in inspect.signature(function).parameters if p not in ("self", "cls")]


def missing(names, text):
    return [name for name in names if not re.search(rf"(?<![\w.]){re.escape(name)}\b", text)]


@pytest.mark.parametrize("name", list(FUNCTIONS))
def test_docstring_of_a_function(name):
    function = FUNCTIONS[name]
    text = function.__doc__ or ""
    assert text.strip(), "no docstring"
    if raises(function):
        assert "Raises" in text, "raises, and does not say what"
    if name in ENTRIES:  # a method may lean on its class
        assert not (left := missing(arguments(function), text)), f"says nothing of {left}"


@pytest.mark.parametrize("name", list(CLASSES))
def test_docstring_of_a_class(name):
    kind = CLASSES[name]
    text = vars(kind).get("__doc__") or ""
    assert text.strip() and not text.startswith(f"{kind.__name__}("), "no docstring"
    fields = (
        [f.name for f in dataclasses.fields(kind) if f.name in inspect.get_annotations(kind)]
        if dataclasses.is_dataclass(kind)
        else []
    )
    own = None if dataclasses.is_dataclass(kind) else vars(kind).get("__init__") or vars(kind).get("__new__")
    taken = fields or (arguments(own) if inspect.isfunction(own) else [])
    assert not (left := missing(taken, text)), f"says nothing of {left}"
    checked = vars(kind).get("__post_init__") or own
    if inspect.isfunction(checked) and raises(checked):
        assert "Raises" in text, "checks its arguments, and does not say what it raises"
