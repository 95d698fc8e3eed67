"""Compares two descriptions field by field, for example a stored configuration and the present one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

SHOWN = 8  # differences listed in a message
_ABSENT = object()  # stands for a field that one side lacks; None is a value


class Difference(NamedTuple):
    """A field and both values as text. A nested field is "outer.inner"."""

    name: str
    one: str
    other: str


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[Difference]:
    """Every field that differs, in the order of `one`. A tuple equals the list that JSON makes of it."""
    found = []
    for name in dict.fromkeys([*one, *other]):
        left, right = one.get(name, _ABSENT), other.get(name, _ABSENT)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            found += [Difference(f"{name}.{inner}", a, b) for inner, a, b in differences(left, right)]
        elif _listed(left) != _listed(right):
            found.append(Difference(str(name), _text(left), _text(right)))
    return found


def listed(found: list[Difference], one: str, other: str) -> str:
    """The first differences as "name: A `one`, B `other`", then the number of further ones."""
    text = "; ".join(f"{name}: {a} {one}, {b} {other}" for name, a, b in found[:SHOWN])
    return text + (f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else "")


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _text(value: Any) -> str:
    text = "nothing" if value is _ABSENT else str(value)
    if len(text) > 40 and " " not in text:
        return text[:12] + "..."  # a hash: its beginning is enough
    return text if len(text) <= 200 else text[:197] + "..."
