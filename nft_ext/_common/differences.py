"""How two descriptions differ, field by field: what a run was begun with, and what it would go on with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

SHOWN = 8  # differences listed in a message
_ABSENT = object()  # of a field that one side does not have: another value than None


class Difference(NamedTuple):
    """A field, nested ones as "outer.inner", and both values as text."""

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
    """The first differences as "name: A `one`, B `other`", and how many more there are."""
    text = "; ".join(f"{name}: {a} {one}, {b} {other}" for name, a, b in found[:SHOWN])
    return text + (f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else "")


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _text(value: Any) -> str:
    text = "nothing" if value is _ABSENT else str(value)
    if len(text) > 40 and " " not in text:
        return text[:12] + "..."  # a hash: its beginning tells it apart
    return text if len(text) <= 200 else text[:197] + "..."
