"""Converts one chip's tallies to one line of text and back, bit for bit. The journal and the ranks use such lines."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from nft_ext._common.checks import fail
from nft_ext.montecarlo.statistics.tallies import Tallies

CHECKSUM = ', "crc": "'  # the last entry of a line: CRC-32 of the text before it
NON_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}  # JSON has no such numbers


@dataclass(frozen=True)
class Row:
    """One chip.

    Attributes:
        draw: its draw.
        tallies: name -> number or list of numbers.
        seconds: its share of the wall time.
    """

    draw: int
    tallies: dict[str, Any]
    seconds: float

    def line(self) -> str:
        """The line as JSON, without its newline. `repr` writes floats so that they read back as the same bits."""
        content = {"draw": self.draw, "seconds": self.seconds, "tallies": _map_numbers(self.tallies, _write)}
        return signed(json.dumps(content, allow_nan=False))

    @classmethod
    def parse(cls, line: str) -> Row:
        """Reads a line that `line()` made.

        Raises:
            ValueError: any other text, for example a torn or changed line.
        """
        text = verified(line)
        if text is None:
            fail("line", "must be a chip's tallies with their checksum", line if len(line) < 60 else line[:57] + "...")
        content = json.loads(text)
        return cls(content["draw"], _map_numbers(content["tallies"], _read), content["seconds"])

    def same_figures(self, other: Row) -> bool:
        """Whether both have the same tallies, bit for bit (NaN equals NaN)."""
        return repr(self.tallies) == repr(other.tallies)


def rows_of(draws: Sequence[int], tallies: Tallies, seconds: float) -> list[Row]:
    """One row per chip of `tallies`. `seconds` is the time of all chips together."""
    columns = {name: sums.tolist() for name, sums in tallies.sums.items()}
    share = round(seconds / len(draws), 6)
    return [Row(draw, {name: column[i] for name, column in columns.items()}, share) for i, draw in enumerate(draws)]


def tallies_of_rows(rows: Iterable[Row]) -> Tallies:
    """The tallies of `rows`, in their order: bit for bit those given to `rows_of` (NaN stays NaN).

    Rows of earlier versions lack some numbers, which become NaN.
    """
    rows = list(rows)
    names = dict.fromkeys(name for row in rows for name in row.tallies)
    columns = {name: [row.tallies.get(name, math.nan) for row in rows] for name in names}
    return Tallies({name: torch.tensor(column, dtype=torch.float64) for name, column in columns.items()})


def signed(text: str) -> str:
    """A JSON object with its checksum as the last entry."""
    return f'{text[:-1]}{CHECKSUM}{_checksum(text[:-1])}"}}'


def verified(line: str) -> str | None:
    """The JSON object that `signed` was given; None for a torn or changed line."""
    text, found, tail = line.rpartition(CHECKSUM)
    return text + "}" if found and tail == f'{_checksum(text)}"}}' else None


def _map_numbers(tallies: dict[str, Any], convert: Callable[[Any], Any]) -> dict[str, Any]:
    return {
        name: [convert(v) for v in value] if isinstance(value, list) else convert(value)
        for name, value in tallies.items()
    }


def _write(value: float) -> float | str:
    return value if math.isfinite(value) else repr(value)


def _read(value: float | str) -> float:
    return NON_FINITE[value] if isinstance(value, str) else value


def _checksum(text: str) -> str:
    return format(zlib.crc32(text.encode()), "08x")
