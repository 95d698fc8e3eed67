"""Rows, comparisons and counts as text tables, CSV and JSON."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nft_ext._common import files
from nft_ext.montecarlo.report.text_table import align
from nft_ext.reproduce.convergence import AGAINST, Converged
from nft_ext.reproduce.summary import Comparison, Row, rank

ABSENT = "-"


@dataclass(frozen=True)
class Table:
    """A title, column names, and lines of text entries, each as long as the header."""

    title: str
    header: list[str]
    body: list[list[str]]

    def __str__(self) -> str:
        return "\n".join([self.title, *("  " + line for line in align([self.header, *self.body]))])


def label(variant: str) -> str:
    """A variant's name, shortened for a column."""
    return variant.replace("pretrained, ", "pretrained ").removesuffix(" epochs")


def fixed(value: float | None, decimals: int = 2, sign: bool = False) -> str:
    """The number, or "-" if it is missing or not finite."""
    if value is None or not math.isfinite(value):
        return ABSENT
    return f"{value:{'+' if sign else ''}.{decimals}f}"


def short(value: float | None) -> str:
    """Two significant digits, or "-"."""
    return ABSENT if value is None or not math.isfinite(value) else f"{value:.2g}"


def accuracy_tables(rows: Sequence[Row], paper_ekl: bool) -> list[Table]:
    """One table per panel and sigma, our numbers beside the paper's. A line not yet computed shows "-".

    Args:
        rows: the results.
        paper_ekl: add a column with the published EKL.
    """
    header = ["", "seeds", "accuracy %", "+-seeds", "+-chips", "clean %", "ECE", "EKL", "paper %", "differs"]
    if paper_ekl:
        header.insert(8, "paper EKL")
    found = {(row.panel, row.sigma, row.variant): row for row in rows}
    tables = []
    for panel in dict.fromkeys(row.panel for row in rows):
        variants = sorted({row.variant for row in rows if row.panel == panel}, key=rank)
        for sigma in sorted({row.sigma for row in rows if row.panel == panel}):
            body = [_accuracy_line(v, found.get((panel, sigma, v)), paper_ekl, len(header)) for v in variants]
            tables.append(Table(f"{panel}, sigma {sigma:g}", header, body))
    return tables


def _accuracy_line(variant: str, row: Row | None, paper_ekl: bool, columns: int) -> list[str]:
    if row is None:
        return [label(variant), *[ABSENT] * (columns - 1)]
    line = [
        label(variant),
        str(len(row.seeds)),
        fixed(row.accuracy),
        fixed(row.seed_ci95),
        fixed(row.noise_ci95),
        fixed(row.clean),
        fixed(row.ece, 3),
        short(row.ekl),
        fixed(row.published),
        fixed(row.difference, sign=True),
    ]
    if paper_ekl:
        line.insert(8, short(row.published_ekl))
    return line


def calibration_tables(rows: Sequence[Row]) -> list[Table]:
    """One table per panel and sigma: calibration as trained, and with logits divided by the fitted temperature T."""
    header = ["", "ECE", "NLL", "EKL", "T", "ECE at T", "NLL at T", "EKL at T"]
    places = dict.fromkeys((row.panel, row.sigma) for row in rows)
    return [
        Table(
            f"{panel}, sigma {sigma:g}: calibration; at T: logits divided by T, fitted on validation images",
            header,
            [
                [
                    label(row.variant),
                    fixed(row.ece, 3),
                    fixed(row.nll, 3),
                    short(row.ekl),
                    short(row.temperature),
                    fixed(row.ece_fitted, 3),
                    fixed(row.nll_fitted, 3),
                    short(row.ekl_fitted),
                ]
                for row in rows
                if (row.panel, row.sigma) == (panel, sigma)
            ],
        )
        for panel, sigma in places
    ]


def comparison_tables(found: Sequence[Comparison]) -> list[Table]:
    """One table per panel and sigma: a minus b in points, interval, p, the adjusted p-values, and what they show."""
    header = ["", "minus", "seeds", "points", "+-95 %", "p", "p (Holm)", "p equal (Holm)", "shown"]
    places = dict.fromkeys((one.panel, one.sigma) for one in found)
    return [
        Table(
            f"{panel}, sigma {sigma:g}: difference of methods, paired over shared training seeds",
            header,
            [
                [
                    label(one.a),
                    label(one.b),
                    str(len(one.seeds)),
                    fixed(one.mean, sign=True),
                    fixed(one.ci95),
                    short(one.p),
                    short(one.p_holm),
                    short(one.p_equal_holm),
                    one.outcome or ABSENT,
                ]
                for one in found
                if (one.panel, one.sigma) == (panel, sigma)
            ],
        )
        for panel, sigma in places
    ]


def convergence_tables(found: Sequence[Converged]) -> list[Table]:
    """One table per criterion, panel and sigma: non-converging trainings, ours and the paper's."""
    tables = []
    for panel, sigma in dict.fromkeys((one.panel, one.sigma) for one in found):
        here = [one for one in found if (one.panel, one.sigma) == (panel, sigma)]
        header = [
            "",
            "fail",
            "converge %",
            "95 % from",
            "to",
            f"p against {AGAINST}",
            "paper: fail",
            "converge %",
            "95 % from",
            "to",
        ]
        body = [
            [
                label(one.variant),
                f"{one.relative.non_converging}/{one.relative.runs}",
                *_percents(one.relative.probability, one.relative.low, one.relative.high),
                short(one.p_relative),
                *_papers(one),
            ]
            for one in here
        ]
        tables.append(
            Table(f"{panel}, sigma {sigma:g}: fails {here[0].relative.criterion} (the paper's criterion)", header, body)
        )
        body = [
            [
                label(one.variant),
                f"{one.absolute.non_converging}/{one.absolute.runs}",
                *_percents(one.absolute.probability, one.absolute.low, one.absolute.high),
                short(one.p_absolute),
            ]
            for one in here
        ]
        bar = f"{here[0].clean:.2f} % (the highest of these trainings)"
        tables.append(Table(f"{panel}, sigma {sigma:g}: fails {here[0].absolute.criterion}, {bar}", header[:6], body))
    return tables


def _papers(one: Converged) -> list[str]:
    if one.paper is None or one.paper_interval is None:
        return [ABSENT] * 4
    count, runs = one.paper
    return [f"{count}/{runs}", *_percents(1 - count / runs, *one.paper_interval)]


def _percents(*shares: float) -> list[str]:
    return [f"{100 * share:.0f}" for share in shares]


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """One line per row: accuracies in percent, EKL in nat, empty if undefined; last, one accuracy per seed."""
    lines: list[list[Any]] = [
        [
            "panel",
            "variant",
            "sigma",
            "trained_sigma",
            "seeds",
            "accuracy",
            "seed_ci95",
            "noise_ci95",
            "clean",
            "ekl",
            "ece",
            "nll",
            "temperature",
            "ekl_fitted",
            "nll_fitted",
            "ece_fitted",
            "chips",
            "images",
            "published",
            "difference",
            "published_ekl",
            "per_seed",
        ]
    ]
    for row in rows:
        numbers = [
            row.accuracy,
            row.seed_ci95,
            row.noise_ci95,
            row.clean,
            row.ekl,
            row.ece,
            row.nll,
            row.temperature,
            row.ekl_fitted,
            row.nll_fitted,
            row.ece_fitted,
            row.chips,
            row.images,
            row.published,
            row.difference,
            row.published_ekl,
        ]
        lines.append(
            [
                row.panel,
                row.variant,
                row.sigma,
                "" if row.trained_sigma is None else row.trained_sigma,
                " ".join(map(str, row.seeds)),
                *(_plain(x, "") for x in numbers),
                " ".join(f"{value:.6g}" for value in row.per_seed),
            ]
        )
    files.write_csv(path, lines, end="\n")


def write_json(content: dict[str, Any], path: Path) -> None:
    """Writes `content`, also dataclasses, as JSON. NaN and infinity become null."""
    files.write_json(path, as_json(content), strict=True)


def as_json(value: Any) -> Any:
    """`value` in JSON-able form."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        properties = {"difference": value.difference} if isinstance(value, Row) else {}
        properties |= {"outcome": value.outcome} if isinstance(value, Comparison) else {}
        return as_json({f.name: getattr(value, f.name) for f in dataclasses.fields(value)} | properties)
    if isinstance(value, dict):
        return {str(name): as_json(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(entry) for entry in value]
    return _plain(value, None)


def _plain(value: Any, absent: Any) -> Any:
    found = files.finite_or_none(value)
    return absent if found is None else found
