"""Reads a measured device from a text table: one row per level with its mean and standard deviation.

Measurement systems, spreadsheets and scripts write such tables in many forms. A form with one meaning is read. Anything
else is refused with its line, because a table that is read wrongly gives a plausible device.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

from nft_ext._common.checks import fail, number, one_of
from nft_ext.device.table_text import Row, numbers_of, rows_of, shortened

UNITS = {
    "level": ("", "-", "1", "level", "levels"),
    "microsiemens": ("us", "\N{GREEK SMALL LETTER MU}s", "microsiemens"),  # casefold makes the micro sign a mu
}


class Levels(NamedTuple):
    """Means and standard deviations in level units, and whether the file shows that it is complete."""

    mean: list[float]
    std: list[float]
    ends: bool  # the last line has a line break


def read_levels(path: Path, unit: str, g_min: float | None, g_max: float | None) -> Levels:
    """The levels of a table with the columns level, mean, std.

    Args:
        path: the file.
        unit: of the means and deviations, "level" or "microsiemens".
        g_min, g_max: conductances of level 0 and of the top level, for microsiemens.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a form with several meanings, levels other than 0 .. 2^K - 1, or values that fit another unit. The
            message has the line.
    """
    one_of("unit", unit, tuple(UNITS))
    for name, value in (("g_min", g_min), ("g_max", g_max)):
        if value is not None and value == value:  # NaN fails below
            number(name, value)
    if unit == "microsiemens" and (g_min is None or g_max is None or not g_min < g_max):
        fail("g_min, g_max", "must be given with g_min < g_max if unit is microsiemens", (g_min, g_max))
    if unit == "level" and (g_min, g_max) != (None, None):
        fail("g_min, g_max", "must be left out if unit is level", (g_min, g_max))
    if not path.is_file():
        fail("path", "must be a CSV file with the columns level, mean, std", str(path), FileNotFoundError)
    rows, units, ends = rows_of(path)
    for column, said in units.items():
        _check_said_unit(path, column, said, unit)
    found = _by_level(path, rows)
    mean, std = ([getattr(row, column) for row in found] for column in ("mean", "std"))
    top = len(found) - 1
    if g_min is not None and g_max is not None:
        per_level = (g_max - g_min) / top
        mean, std = [(m - g_min) / per_level for m in mean], [s / per_level for s in std]
    _check_unit(path, mean, unit, g_min, g_max)
    for below, level in zip(mean, range(1, top + 1)):
        if not mean[level] > below:
            fail(found[level].place, f"must have a mean above that of level {level - 1}", found[level].line)
    for level, deviation in enumerate(std):
        if deviation > top / 2:  # no conductance within the range of the levels deviates further
            rule = f"must have a std in the unit of the means, at most half the range, {top / 2:g} levels (no percent)"
            fail(found[level].place, rule, found[level].line)
    return Levels(mean, std, ends)


class _Level(NamedTuple):
    mean: float
    std: float
    place: str
    line: str


def _by_level(path: Path, rows: list[Row]) -> list[_Level]:
    """The rows in the order of their levels, which are 0 .. 2^K - 1, each once."""
    found: dict[int, _Level] = {}
    for row, (level, mean, std) in zip(rows, numbers_of(path, rows)):
        place = f"{path}, line {row.number}"
        if not level.is_integer():
            fail(place, "must hold an integer level and two numbers", row.line)
        if not (math.isfinite(mean) and math.isfinite(std) and std >= 0):
            fail(place, "must hold a finite mean and a finite std >= 0", row.line)
        if int(level) in found:
            fail(place, "must name each level once", row.line)
        found[int(level)] = _Level(mean, std, place, row.line)
    count = len(found)
    if count < 2 or count & (count - 1) or sorted(found) != list(range(count)):
        fail(str(path), "must list the levels 0 .. 2^K - 1, K >= 1", shortened(str(sorted(found))))
    return [found[level] for level in range(count)]


def _check_said_unit(path: Path, column: str, said: str, unit: str) -> None:
    """Refuses a unit in the header that differs from the argument `unit`."""
    known = UNITS["level"] if column == "level" else UNITS[unit]
    if said.casefold() not in known:
        also = ' (unit="microsiemens" reads conductances)' if unit == "level" and column != "level" else ""
        fail(str(path), f"must have the column {column} in the unit {unit!r}{also}", f"the unit {said!r} in its header")


def _check_unit(path: Path, mean: list[float], unit: str, g_min: float | None, g_max: float | None) -> None:
    """Refuses means outside the range of the levels, or within a part of it: they have another unit or bounds."""
    top = len(mean) - 1
    if all(-1 < m < top + 1 for m in mean) and mean[0] < top / 2 < mean[-1] and mean[-1] - mean[0] >= top / 2:
        return
    found = shortened(", ".join(f"{m:.4g}" for m in mean))
    if unit == "level":
        rule = f'must have means in level units, near 0 .. {top} (conductances need unit="microsiemens")'
        fail(str(path), rule, found)
    rule = f"must be the conductances of level 0 and level {top}, so that the means are near 0 .. {top} level units"
    fail("g_min, g_max", rule, f"{g_min:g}, {g_max:g} and so {found}")
