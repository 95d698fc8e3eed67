"""One chip's tallies as one line of text, and back, bit for bit: what the journal holds and ranks send each other."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

from nft_ext._common.checks import fail
from nft_ext.montecarlo.statistics.tallies import Tallies

CHECKSUM = ', "crc": "'  # the last entry of a line, over the text before it
NON_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}  # JSON has no such numbers


@dataclass(frozen=True)
class Row:
    """One chip: its draw, its tallies (name -> number, or numbers), and its share of the wall time in seconds."""

    draw: int
    tallies: dict[str, Any]
    seconds: float

    def line(self) -> str:
        """JSON, without the line's end. Floats are written by repr, which reads back as the same bits."""
        content = {"draw": self.draw, "seconds": self.seconds, "tallies": _map(self.tallies, _write)}
        text = json.dumps(content, allow_nan=False)[:-1]
        return f'{text}{CHECKSUM}{_checksum(text)}"}}'

    @classmethod
    def parse(cls, line: str) -> Row:
        """What `line()` gave.

        Raises ValueError for anything else: cut short, changed, or two lines in one.
        """
        text, found, tail = line.rpartition(CHECKSUM)
        if not found or tail != f'{_checksum(text)}"}}':
            fail("line", "must be a chip's figures with their checksum", line if len(line) < 60 else line[:57] + "...")
        content = json.loads(text + "}")
        return cls(content["draw"], _map(content["tallies"], _read), content["seconds"])

    def same_figures(self, other: Row) -> bool:
        """Whether both hold the same bits (NaN equals NaN); the time does not count."""
        return repr(self.tallies) == repr(other.tallies)


def rows_of(draws: Sequence[int], tallies: Tallies, seconds: float) -> list[Row]:
    """One row a chip of `tallies` (S chips), which took `seconds` together."""
    columns = {f.name: getattr(tallies, f.name).tolist() for f in fields(tallies)}
    share = round(seconds / len(draws), 6)
    return [Row(draw, {name: column[i] for name, column in columns.items()}, share) for i, draw in enumerate(draws)]


def tallies_of_rows(rows: Iterable[Row]) -> Tallies:
    """The chips of `rows`, in their order; equal, bit for bit, to what `rows_of` was given (NaN stays NaN)."""
    rows = list(rows)
    if not rows:
        return Tallies.concatenate([])
    columns = {f.name: [row.tallies[f.name] for row in rows] for f in fields(Tallies)}
    return Tallies(**{name: torch.tensor(column, dtype=torch.float64) for name, column in columns.items()})


def _map(value, convert):
    if isinstance(value, dict):
        return {name: _map(v, convert) for name, v in value.items()}
    return [convert(v) for v in value] if isinstance(value, list) else convert(value)


def _write(value: float) -> float | str:
    return value if math.isfinite(value) else repr(value)


def _read(value: float | str) -> float:
    return NON_FINITE[value] if isinstance(value, str) else value


def _checksum(text: str) -> str:
    return format(zlib.crc32(text.encode()), "08x")
