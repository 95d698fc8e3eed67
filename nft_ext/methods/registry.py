"""Methods by name, as checkpoints and the command line know them."""

from __future__ import annotations

import inspect
from typing import Any, TypeVar

from nft_ext._common.checks import did_you_mean, fail, one_of
from nft_ext.methods.base import Method

_METHODS: dict[str, type[Method]] = {}
Kind = TypeVar("Kind", bound=type[Method])


def register(kind: Kind) -> Kind:
    """Class decorator: `build` finds the method under its `name` from here on.

    Args:
        kind: a class derived from `Method`.

    Raises:
        ValueError: another class has that name.
    """
    if _METHODS.get(kind.name, kind).__qualname__ != kind.__qualname__:  # the same class again: a module read twice
        fail("name", "must not be another method's", kind.name)
    _METHODS[kind.name] = kind
    return kind


def names() -> tuple[str, ...]:
    """The names of all registered methods."""
    return tuple(_METHODS)


def options_of(name: str) -> dict[str, inspect.Parameter]:
    """The options that the method called `name` takes.

    Raises:
        ValueError: an unknown name (the near ones are given).
    """
    return dict(inspect.signature(_known(name)).parameters)


def build(name: str, **options: Any) -> Method:
    """The method called `name` with its options.

    Args:
        name: vanilla, noise, control, ovf, irs, censored, correctnet, or what else was registered.
        options: see the method's class.

    Raises:
        ValueError: an unknown name (the near ones are given), an unknown, missing or bad option.
    """
    kind, taken = _known(name), options_of(name)
    unknown = [option for option in options if option not in taken]
    if unknown:
        fail(
            f"{name} options",
            f"must be among {', '.join(taken) or 'none'}{did_you_mean(unknown[0], taken)}",
            ", ".join(unknown),
        )
    missing = [p.name for p in taken.values() if p.default is p.empty and p.name not in options]
    if missing:
        fail(f"{name} options", f"must include {', '.join(missing)}", ", ".join(options) or "none")
    return kind(**options)


def _known(name: str) -> type[Method]:
    return _METHODS[one_of("method", name, _METHODS)]
