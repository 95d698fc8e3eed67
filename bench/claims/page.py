"""A page and its entries: every figure on the page is one that an entry compares with a file, or a stated setting."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
NUMBER = r"[+-]?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?"
UNIT = r"(?:%|ms|us|ns|s|x(?!\s*\d)|min|hours?|minutes?|seconds?|kB|[KMG]B|[MG]iB|points?|times)(?![\w-])"
# What looks like a measurement: a number with a unit, with decimals, behind "+-" or alone in a cell of a table.
FIGURE = re.compile(
    rf"(?<![\w.]){NUMBER}(?=\s*{UNIT})|(?<![\w.])[+-]?\d[\d,]*\.\d+(?![\w.]*\d)|(?<=\+- ){NUMBER}"
    rf"|(?<=\| ){NUMBER}(?= \|)"
)
# No measurement wherever it stands: settings, and numbers of versions.
SETTINGS = (
    r"(?i:sigma|beta|width|delta|learning rate|rate|torch|nft_ext|Python|CUDA|version|arXiv|>=)\s+"
    rf"\d[\d.]*\d(?:(?:,| and| or| to)\s+\d\.\d+)*(?!\d|\s*{UNIT})"
)
INVISIBLE = re.compile(
    r"^```.*?^```$|<!--.*?-->|`[^`]*`|(?<=\])\([^)]*\)|(?<=\])\[[^\]]*\]|^\[[^\]]+\]: .*?$|https?://\S+|^#.*?$",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Claim:
    """A piece of a page's text with `{}` for each figure, and the same figures computed from committed files.

    Args:
        text: the piece, without `**`; a line break equals a space.
        files: paths from the root of the repository.
        figures: takes the contents of `files`, returns one number per `{}`, in the page's unit.
    """

    text: str
    files: Sequence[str]
    figures: Callable[..., Sequence[float]]

    @property
    def pattern(self) -> re.Pattern[str]:
        pieces = [r"\s+".join(map(re.escape, re.split(r"\s+", piece))) for piece in self.text.strip().split("{}")]
        return re.compile(rf"({NUMBER})".join(pieces))


@dataclass(frozen=True)
class Page:
    """`stated` are patterns of numbers that no file holds: settings, limits in the code, arithmetic."""

    path: str
    claims: Sequence[Claim] = ()
    stated: Sequence[str] = ()
    part: str = r"\A.*\Z"  # the part in which every figure needs an entry


@cache
def content(path: str) -> Any:
    return json.loads((ROOT / path).read_text())


def agrees(shown: str, value: float) -> bool:
    """Whether `shown` is `value` rounded to its digits; whole numbers above 999 may be rounded to three digits."""
    number = float(shown.replace(",", ""))
    mantissa, _, exponent = shown.lower().replace(",", "").partition("e")
    unit = 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))
    if unit == 1 and abs(number) >= 1000 and number % 10 == 0:
        unit = 10.0 ** (len(str(int(abs(number)))) - 3)
    return abs(number - value) <= unit * 0.5 * (1 + 1e-6)


def faults(page: Page, text: str | None = None) -> Iterator[str]:
    """What is wrong with `page`: figures that differ, entries without a place, figures without an entry."""
    text = ((ROOT / page.path).read_text() if text is None else text).replace("**", "")
    covered = [match.span() for match in INVISIBLE.finditer(text)]

    def place(at: int) -> str:
        return f"{page.path}:{text.count(chr(10), 0, at) + 1}"

    for claim in page.claims:
        found = list(claim.pattern.finditer(text))
        if not found:
            yield f"{page.path}: its entry has no place on the page: {' '.join(claim.text.split())!r}"
        for match in found:
            values = [float(value) for value in claim.figures(*map(content, claim.files))]
            shown = match.groups()
            if len(values) != len(shown):
                yield f"{place(match.start())}: {len(shown)} figures, but its entry gives {len(values)}"
            for which, (figure, value) in enumerate(zip(shown, values, strict=False), start=1):
                if not agrees(figure, value):
                    yield f"{place(match.start(which))}: says {figure}, but {', '.join(claim.files)} give {value:.5g}"
            covered.append(match.span())
    for stated in page.stated:
        found = [match.span() for match in re.finditer(r"\s+".join(stated.split(" ")), text)]
        if not found:
            yield f"{page.path}: nothing on the page is what it lists as stated: {stated!r}"
        covered += found
    covered += [match.span() for match in re.finditer(SETTINGS, text)]
    part = re.search(page.part, text, re.DOTALL)
    if not part:
        yield f"{page.path}: has no part {page.part!r}"
        return
    for match in FIGURE.finditer(text, *part.span()):
        if not any(first <= match.start() and match.end() <= last for first, last in covered):
            yield f"{place(match.start())}: {match.group()} has no entry in bench/claims/"
