"""Methods by name, for checkpoints and the command line."""

from __future__ import annotations

import inspect
from typing import Any, TypeVar

from nft_ext._common.checks import did_you_mean, fail, one_of
from nft_ext.methods.base import Method

_METHODS: dict[str, type[Method]] = {}
Kind = TypeVar("Kind", bound=type[Method])


def register(kind: Kind) -> Kind:
    """Class decorator that makes a method known to `build` under its `name`.

    Args:
        kind: a class derived from `Method`.

    Raises:
        TypeError: not such a class.
        ValueError: another class has this name.
    """
    if not (isinstance(kind, type) and issubclass(kind, Method)):
        fail("kind", "must be a class derived from nft_ext.methods.Method", repr(kind), TypeError)
    if _METHODS.get(kind.name, kind).__qualname__ != kind.__qualname__:  # the same class again: a reloaded module
        fail("name", "must not be the name of another method", kind.name)
    _METHODS[kind.name] = kind
    return kind


def names() -> tuple[str, ...]:
    """The names of all registered methods."""
    return tuple(_METHODS)


def options_of(name: str) -> dict[str, inspect.Parameter]:
    """The options that the method called `name` takes.

    Raises:
        ValueError: the name is unknown. The message suggests near names.
    """
    return dict(inspect.signature(_known(name)).parameters)


def build(name: str, **options: Any) -> Method:
    """The method called `name` with its options.

    Args:
        name: vanilla, noise, control, ovf, irs, censored, correctnet, or another registered name.
        options: see the method's class.

    Raises:
        ValueError: the name is unknown, or an option is unknown, missing or out of range.
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
