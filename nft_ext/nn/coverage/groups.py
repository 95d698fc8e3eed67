"""Rows of repeated layers together: h.0.mlp.weight, h.1.mlp.weight, ... become h.*.mlp.weight."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from nft_ext.nn.coverage.rows import Row

_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")


@dataclass(frozen=True)
class Group:
    """Rows that differ in the numbers of their names only.

    Attributes:
        name: their name, with * in place of numbers that differ.
        count: number of rows.
        module, shape, place, reason: as in a row.
        cells: weights of all rows together.
        macs: their multiply-accumulates; None without an example.
        ran: number of rows that a forward read as a crossbar; None without an example.
        crossbars, arrays: of all rows together; None without any.
        array_use: share of the cells of the arrays that hold a weight; None without arrays.
        crossbar: (inputs, outputs) of one crossbar.
    """

    name: str
    count: int
    module: str
    shape: tuple[int, ...]
    place: str
    reason: str | None
    cells: int
    macs: int | None
    ran: int | None
    crossbars: int | None
    arrays: int | None
    array_use: float | None
    crossbar: tuple[int, int] | None


def grouped(rows: Iterable[Row]) -> list[Group]:
    """Groups of rows of one name pattern, class, shape, place, reason and use of arrays, the biggest first."""
    found: dict[tuple, list[Row]] = {}
    for row in rows:
        key = _NUMBER.sub("*", row.name), row.module, row.shape, row.place, row.reason, row.array_use
        found.setdefault(key, []).append(row)
    return sorted((_group(members) for members in found.values()), key=lambda group: -group.cells)


def _group(rows: list[Row]) -> Group:
    first = rows[0]
    return Group(
        name=_common_name([row.name for row in rows]),
        count=len(rows),
        module=first.module,
        shape=first.shape,
        place=first.place,
        reason=first.reason,
        cells=sum(row.cells for row in rows),
        macs=_total([row.macs for row in rows]),
        ran=_total([None if row.ran is None else int(row.ran) for row in rows]),
        crossbars=_total([row.crossbars for row in rows]),
        arrays=_total([row.arrays for row in rows]),
        array_use=first.array_use,
        crossbar=first.crossbar,
    )


def _common_name(names: list[str]) -> str:
    parts = zip(*(name.split(".") for name in names))
    return ".".join(texts[0] if len(set(texts)) == 1 else "*" for texts in parts)


def _total(values: list[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None
