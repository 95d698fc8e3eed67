"""How nft_ext refuses bad input: one sentence that names the argument, the rule and the value."""

from __future__ import annotations

import numbers
from typing import Any, NoReturn


def fail(argument: str, rule: str, value: Any, kind: type[Exception] = ValueError) -> NoReturn:
    """Raise `kind` with "argument: rule; got value".

    Args:
        argument: the name the caller used, for example "sigma" or "NoisyConv2d.weight".
        rule: what must hold, starting with a verb ("must be ...").
        value: the offending value (or a short description of it).
        kind: the exception class.
    """
    raise kind(f"{argument}: {rule}; got {value!r}" if not isinstance(value, str) else f"{argument}: {rule}; got {value}")


def integer(argument: str, value: Any, low: int, high: int | None = None) -> int:
    """`value` as an int within [low, high]; bool and fractional numbers are refused.

    Raises:
        ValueError: not an integer, or out of range.
    """
    if type(value) is int and value >= low and (high is None or value <= high):
        return value  # the common case, on the path of every forward
    rule = f"must be an integer >= {low}" if high is None else f"must be an integer in {low}..{high}"
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        fail(argument, rule, value)
    if value < low or (high is not None and value > high):
        fail(argument, rule, int(value))
    return int(value)


def number(argument: str, value: Any, low: float | None = None, high: float | None = None) -> float:
    """`value` as a finite float within [low, high].

    Raises:
        ValueError: not a real number, NaN, infinite, or out of range.
    """
    bounds = [f">= {low:g}" if low is not None else "", f"<= {high:g}" if high is not None else ""]
    rule = " ".join(["must be a finite number", " and ".join(b for b in bounds if b)]).strip()
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        fail(argument, rule, value)
    real = float(value)
    if real != real or real in (float("inf"), float("-inf")):
        fail(argument, rule, real)
    if (low is not None and real < low) or (high is not None and real > high):
        fail(argument, rule, real)
    return real


def boolean(argument: str, value: Any) -> bool:
    """`value`, True or False; 0, 1 and strings are refused.

    Raises:
        ValueError: anything else.
    """
    if not isinstance(value, bool):
        fail(argument, "must be True or False", value)
    return value
