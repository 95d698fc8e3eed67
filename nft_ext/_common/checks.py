"""Checks of input. An error has at most two sentences and names the argument, the rule and the value."""

from __future__ import annotations

import difflib
import numbers
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
from torch import nn

Kind = TypeVar("Kind")


def fail(argument: str, rule: str, value: Any, kind: type[Exception] = ValueError) -> NoReturn:
    """Raise `kind` with "argument: rule; got value".

    Args:
        argument: the name the caller used, for example "sigma" or "NoisyConv2d.weight".
        rule: the rule, starting with a verb ("must be ...").
        value: the offending value (or a short description of it).
        kind: the exception class.
    """
    raise kind(
        f"{argument}: {rule}; got {value!r}" if not isinstance(value, str) else f"{argument}: {rule}; got {value}"
    )


def integer(argument: str, value: Any, low: int, high: int | None = None) -> int:
    """`value` as an int within [low, high]. Refuses bool and fractional numbers.

    Raises:
        ValueError: not an integer, or out of range.
    """
    if type(value) is int and value >= low and (high is None or value <= high):
        return value  # the common case: every forward comes here
    rule = f"must be an integer >= {low}" if high is None else f"must be an integer in {low}..{high}"
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        fail(argument, rule, _quoted(value))
    found = int(value)
    if found < low or (high is not None and found > high):
        fail(argument, rule, found)
    return found


def number(argument: str, value: Any, low: float | None = None, high: float | None = None) -> float:
    """`value` as a finite float within [low, high].

    Raises:
        ValueError: not a real number, NaN, infinite, or out of range.
    """
    bounds = [f">= {low:g}" if low is not None else "", f"<= {high:g}" if high is not None else ""]
    rule = " ".join(["must be a finite number", " and ".join(b for b in bounds if b)]).strip()
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        fail(argument, rule, _quoted(value))
    real = float(value)
    if real != real or real in (float("inf"), float("-inf")):
        fail(argument, rule, real)
    if (low is not None and real < low) or (high is not None and real > high):
        fail(argument, rule, real)
    return real


def boolean(argument: str, value: Any) -> bool:
    """`value`, True or False. Refuses 0, 1 and strings.

    Raises:
        ValueError: anything else.
    """
    if not isinstance(value, bool):
        fail(argument, "must be True or False", repr(value))
    return value


def optional_boolean(argument: str, value: Any) -> bool | None:
    """`value`, True, False or None. Refuses 0, 1 and strings.

    Raises:
        ValueError: anything else.
    """
    if value is not None and not isinstance(value, bool):
        fail(argument, "must be None, True or False", repr(value))
    return value


def text(argument: str, value: Any) -> str:
    """`value`, a string.

    Raises:
        TypeError: anything else.
    """
    return instance(argument, value, str, "a string")


def file_path(argument: str, value: Any) -> Path:
    """`value`, a string or a path object, as a Path. Refuses bytes, numbers and the empty string.

    Raises:
        TypeError: neither a string nor a path object.
        ValueError: an empty string, which would mean the current folder.
    """
    if not isinstance(value, (str, PathLike)):
        fail(argument, "must be the path of a file or folder, a string or pathlib.Path", repr(value), TypeError)
    if value == "":
        fail(argument, "must name a file or folder", "an empty string")
    return Path(value)


def torch_device(argument: str, value: Any) -> torch.device:
    """`value`, a torch device or what torch.device accepts. Refuses bool, which torch takes for a number.

    Raises:
        TypeError: another type.
        ValueError: torch knows no such device.
    """
    if isinstance(value, bool) or not isinstance(value, (str, int, torch.device)):
        fail(argument, "must be an available torch device", repr(value), TypeError)
    try:
        return torch.device(value)
    except RuntimeError as error:
        fail(argument, "must be an available torch device", f"{value!r} ({str(error).splitlines()[0]})")


def instance(argument: str, value: Any, kind: type[Kind], what: str) -> Kind:
    """`value`, an object of the class `kind`; `what` names the class in words.

    Raises:
        TypeError: anything else.
    """
    if not isinstance(value, kind):
        fail(argument, f"must be {what}", repr(value) if isinstance(value, _PLAIN) else type(value).__name__, TypeError)
    return value


def module(argument: str, value: Any) -> nn.Module:
    """`value`, a torch.nn.Module.

    Raises:
        TypeError: anything else.
    """
    if not isinstance(value, nn.Module):
        fail(argument, "must be a torch.nn.Module", type(value).__name__, TypeError)
    return value


def items(argument: str, value: Any, what: str) -> list[Any]:
    """The items of `value`, a list, tuple or another iterable. Refuses a string, whose items are its letters.

    Raises:
        TypeError: anything else.
    """
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        fail(argument, f"must be a list of {what}", repr(value), TypeError)
    return list(value)


def one_of(argument: str, value: Any, known: Iterable[str], note: str = "") -> Any:
    """`value`, one of `known`.

    Args:
        argument: the name the caller used.
        value: the value to check.
        known: the allowed names.
        note: text after the list of names in the error.

    Raises:
        ValueError: not one of `known`. The message lists them all and the nearest one.
    """
    names = tuple(known)
    if not isinstance(value, str) or value not in names:
        fail(argument, f"must be one of {', '.join(names)}{note}{did_you_mean(value, names)}", value)
    return value


def did_you_mean(value: Any, known: Iterable[str], most: int = 1) -> str:
    """Up to `most` names near `value`, as " (did you mean 'a' or 'b'?)"; empty if no name is near."""
    near = difflib.get_close_matches(str(value), list(known), n=most)
    return f" (did you mean {' or '.join(map(repr, near))}?)" if near else ""


_PLAIN = (bool, int, float, str, bytes, type(None))  # shown by value in messages; other objects by class


def _quoted(value: Any) -> Any:
    """`value`, in quotes if it is a string that looks like a number."""
    try:
        return value if not isinstance(value, str) or float(value) is None else repr(value)
    except ValueError:
        return value
