"""The text of a table: its encoding, comments, separators, header and numbers.

Nothing is guessed. Cells are counted against the header, and a number that may mean two values is refused.
"""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import NamedTuple

from nft_ext._common.checks import fail

COLUMNS = ("level", "mean", "std")
COMMENTS = ("#", "%", "//")
LARGEST = 1 << 20  # bytes; a table of 2^16 levels is smaller
SHOWN = 80  # characters of a line in a message
_SEPARATORS = (",", ";", "\t", None)  # None: any run of spaces, as numpy.savetxt writes
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_WITH_UNIT = re.compile(r"(\w+)\s*[(\[]\s*(.*?)\s*[)\]]")
_GROUPED = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+", re.ASCII)  # 1,234 means 1234 or 1.234


class Row(NamedTuple):
    """A row of the table: the number of its line, the line's text and the cells of COLUMNS."""

    number: int
    line: str
    cells: list[str]


def rows_of(path: Path) -> tuple[list[Row], dict[str, str], bool]:
    """The rows, the units in the header (column -> unit), and whether the last line has a line break.

    Comments begin with #, % or //. They and empty lines may stand anywhere. The header may be a comment.

    Raises:
        ValueError: no text, no header, text before the header, or another number of cells than the header has.
    """
    text = _text(path)
    header: list[str] | None = None
    separator: str | None = None
    units: dict[str, str] = {}
    places: list[int] = []
    rows: list[Row] = []
    first: tuple[str, str] | None = None  # place and text of the first line that is not the header
    for number, line in enumerate(re.split(r"\r\n|\r|\n", text), start=1):
        place, shown = f"{path}, line {number}", _short(line)
        comment = line.lstrip(' \t"').startswith(COMMENTS)
        if header is None:
            found = _header(place, line.lstrip(' \t"#%/') if comment else line)
            if found is not None:
                header, separator, units = found
                places = [header.index(column) for column in COLUMNS]
            elif not comment and first is None and line.strip(',;"').strip():
                first = (place, shown)
            if found is not None and first is not None:
                fail(first[0], "must be the header level, mean, std, or a comment that begins with #", first[1])
            continue
        cells = [] if comment else _cells(place, line, separator)
        if not any(cells):
            continue
        if len(cells) != len(header):
            rule = f"must have {len(header)} cells, as the header has"
            rule += "; write decimal points, or semicolons between cells" if len(cells) > len(header) else ""
            fail(place, rule, f"{len(cells)} cells in {shown}")
        chosen = [cells[i] for i in places]
        if not rows and not any(re.search(r"\d", cell) for cell in chosen):  # a row of units below the header
            units |= {column: cell.strip("()[] ") for column, cell in zip(COLUMNS, chosen)}
            continue
        rows.append(Row(number, shown, chosen))
    if header is None:
        place, shown = first or (str(path), "no line")
        words = re.findall(r"\w+", shown.casefold())
        missing = ", ".join(column for column in COLUMNS if column not in words) or "a separator"
        fail(place, f"must have the columns level, mean, std; missing {missing}", shown)
    return rows, units, text.endswith(("\r", "\n"))


def numbers_of(path: Path, rows: list[Row]) -> list[list[float]]:
    """The numbers of all rows. Decimal commas are read if the whole table has them.

    Raises:
        ValueError: a cell is no number, or its comma may separate thousands or decimals.
    """
    commas = [cell for row in rows for cell in row.cells if "," in cell]
    points = any("." in cell for row in rows for cell in row.cells)
    found = []
    for row in rows:
        place = f"{path}, line {row.number}"
        if any("," in cell for cell in row.cells) and (points or all(map(_GROUPED.fullmatch, commas))):
            fail(place, "must hold numbers without thousands separators, with a decimal point", row.line)
        cells = [cell.replace(",", ".").replace("\N{MINUS SIGN}", "-") for cell in row.cells]
        if not all(_NUMBER.fullmatch(cell) or cell.lstrip("+-").lower() in ("nan", "inf") for cell in cells):
            fail(place, "must hold an integer level and two numbers", row.line)
        found.append([float(cell) for cell in cells])
    return found


def _text(path: Path) -> str:
    """The file's text: UTF-8, UTF-16 with a byte order mark, or Latin-1, in which old systems write the micro sign."""
    if path.stat().st_size > LARGEST:
        fail(str(path), f"must be a table of at most {LARGEST} bytes", path.stat().st_size)
    raw = path.read_bytes()
    coded = "utf-16" if raw.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        text = raw.decode(coded)
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    if "\0" in text:
        fail(str(path), "must be a CSV file in UTF-8", "bytes that are not text")
    return text


def _header(place: str, line: str) -> tuple[list[str], str | None, dict[str, str]] | None:
    """(names, separator, units) if the line names all columns, each once. Names may carry a unit: mean (uS)."""
    for separator in _SEPARATORS:
        names, units = [], {}
        for cell in _cells(place, line, separator, strict=False):
            with_unit = _WITH_UNIT.fullmatch(cell)
            names.append((with_unit[1] if with_unit else cell).casefold())
            if with_unit and names[-1] in COLUMNS:
                units[names[-1]] = with_unit[2]
        if all(column in names for column in COLUMNS):
            for column in COLUMNS:
                if names.count(column) > 1:
                    fail(place, f"must name the column {column} once", _short(line))
            return names, separator, units
    return None


def _cells(place: str, line: str, separator: str | None, strict: bool = True) -> list[str]:
    if separator is None:
        return [cell.strip('"') for cell in line.split()]
    try:
        cells = next(csv.reader([line], delimiter=separator, skipinitialspace=True, strict=strict), [])
    except csv.Error as error:
        fail(place, f"must have whole cells ({error})", _short(line))
    return [cell.strip() for cell in cells]


def shortened(text: str) -> str:
    """`text` for a message, at most SHOWN characters of it."""
    return text if len(text) <= SHOWN else text[:SHOWN] + " ..."


def _short(line: str) -> str:
    return repr(shortened(line))
