"""The coverage of a model in one line, from the summary that `Coverage.summary` makes and reports store."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

_UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k"))


def number(value: float) -> str:
    """A count in three digits, as 28.3 M; exactly below ten thousand."""
    for size, unit in _UNITS:
        if value >= 0.9995 * size:
            scaled = value / min(size, 1e3) if unit == "k" else value / size
            return f"{scaled:.{max(0, 2 - int(math.log10(scaled) + 1e-9))}f} {unit}"
    return f"{value:,.0f}"


def percent(share: float) -> str:
    """A share in percent with one decimal. Only 1 is 100 %, and only 0 is 0 %."""
    if math.isnan(share):
        return "-"
    if share in (0, 1):
        return f"{100 * share:.0f} %"
    text = f"{100 * share:.1f}"
    return "> 99.9 %" if text == "100.0" else "< 0.1 %" if text == "0.0" else f"{text} %"


def is_complete(summary: Mapping[str, Any]) -> bool:
    """Whether every matrix is on a crossbar, and every multiply-accumulate as far as known."""
    return not summary["digital"] and summary["mac_share"] in (None, 1)


def shares(summary: Mapping[str, Any]) -> str:
    """ "99.2 % of matrix weights on crossbars, 98.1 % of multiply-accumulates"."""
    share, macs = summary["share"], summary["mac_share"]
    which = "the known matrix weights" if summary["sizes_unknown"] else "matrix weights"
    text = "no matrix weights" if share is None else f"{percent(share)} of {which} on crossbars"
    return text if macs is None else f"{text}, {percent(macs)} of multiply-accumulates"


def coverage_line(summary: Mapping[str, Any], most: int = 3) -> str:
    """One line: the shares, and the biggest digital matrices.

    Args:
        summary: as `Coverage.summary` returns it.
        most: number of groups to name.
    """
    return shares(summary) + exceptions(summary["digital"], summary["digital_not_listed"], most)


def exceptions(groups: list[Mapping[str, Any]], left: int, most: int) -> str:
    """The biggest groups of digital matrices, as "; digital: ..."; empty without any.

    Args:
        groups: dicts with name, count, module, cells and reason.
        left: number of further matrices.
        most: number of groups to name.
    """
    if not groups:
        return ""
    left += sum(group["count"] for group in groups[most:])
    named = ", ".join(map(_exception, groups[:most]))
    return f"; digital: {named}" + (f" and {left} more" if left else "")


def _exception(group: Mapping[str, Any]) -> str:
    times = f"{group['count']} x " if group["count"] > 1 else ""
    size = f", {number(group['cells'])}" if group["cells"] else ""
    return f"{group['name']} ({times}{group['module']}{size}: {group['reason']})"
