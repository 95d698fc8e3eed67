"""The ranking of the methods under each setting of the protocol study, and the effect of each setting."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nft_ext.reproduce.settings import BASE, SETTINGS
from nft_ext.reproduce.summary import SIGNIFICANT, Comparison, Row, compared, holm, rank
from nft_ext.reproduce.tables import ABSENT, Table, fixed

AGAINST = ("base", "noise", "control")


@dataclass(frozen=True)
class Ranked:
    """One method under one setting.

    A comparison is None if the method is not compared or its partner is missing. A setting that does not concern the
    partner leaves it unchanged.

    Attributes:
        place: 1 for the highest mean accuracy of the setting, over the training seeds that all its methods have.
        base: minus the same method without the setting.
        noise: minus noise injection under the same setting.
        control: minus the method's control under the same setting.
    """

    setting: str
    method: str
    row: Row
    place: int
    base: Comparison | None
    noise: Comparison | None
    control: Comparison | None


def ranked(table: Sequence[Row]) -> list[Ranked]:
    """All methods, setting by setting, the base first. Holm's method adjusts all p together."""
    found = []
    for panel, sigma in dict.fromkeys((row.panel, row.sigma) for row in table):
        lines = {row.variant: row for row in table if (row.panel, row.sigma) == (panel, sigma)}
        for setting in ("", *SETTINGS):
            found += _of_setting(setting, lines)
    return _adjusted(found)


def _of_setting(setting: str, lines: dict[str, Row]) -> list[Ranked]:
    def under(method: str) -> Row | None:
        concerned = not setting or method.partition("-")[0] in SETTINGS[setting].methods
        return lines.get(f"{method} {setting}".rstrip() if concerned else method)

    own = [v for v in lines if v.partition(" ")[2] == setting]
    if not own:
        return []
    # All methods take part in the ranking. A setting leaves some of them unchanged.
    means = _means([r for m in dict.fromkeys(v.partition(" ")[0] for v in lines) if (r := under(m)) is not None])
    found = []
    for variant in sorted(own, key=rank):
        row, method = lines[variant], variant.partition(" ")[0]
        control = under("control") or under(f"control-{method}")
        found.append(
            Ranked(
                setting or BASE,
                method,
                row,
                1 + sum(mean > means[variant] for mean in means.values()),
                compared(row, lines.get(method)) if setting else None,
                compared(row, under("noise")) if method != "noise" else None,
                compared(row, control) if method in ("ovf", "irs") else None,
            )
        )
    return found


def _means(lines: Sequence[Row]) -> dict[str, float]:
    """Mean accuracy of each line over the training seeds that all lines share, or over its own if they share none."""
    shared = set(lines[0].seeds).intersection(*(row.seeds for row in lines))
    return {
        row.variant: float(np.mean([a for seed, a in zip(row.seeds, row.per_seed) if not shared or seed in shared]))
        for row in lines
    }


def _adjusted(found: list[Ranked]) -> list[Ranked]:
    adjusted = iter(holm(contrasts(found)))
    return [
        dataclasses.replace(one, **{name: next(adjusted) for name in AGAINST if getattr(one, name) is not None})
        for one in found
    ]


def contrasts(found: Sequence[Ranked]) -> list[Comparison]:
    """Every comparison in `found`, in order."""
    return [getattr(one, name) for one in found for name in AGAINST if getattr(one, name) is not None]


def ranking_tables(found: Sequence[Ranked]) -> list[Table]:
    """One table per panel and sigma: accuracy, place, and differences in points with 95 % half-widths.

    A star marks a difference whose adjusted p is below 0.05. "=" marks one that is shown to be below 2 points.
    """
    header = [
        "setting",
        "method",
        "seeds",
        "accuracy %",
        "+-95 %",
        "place",
        "minus base",
        "minus noise",
        "minus control",
    ]
    tables = []
    for panel, sigma in dict.fromkeys((one.row.panel, one.row.sigma) for one in found):
        body = []
        for one in found:
            if (one.row.panel, one.row.sigma) == (panel, sigma):
                first = not body or all(line[0] != one.setting for line in body)
                body.append(
                    [
                        one.setting if first else "",
                        one.method,
                        str(len(one.row.seeds)),
                        fixed(one.row.accuracy),
                        fixed(one.row.seed_ci95),
                        str(one.place),
                        *map(_points, (one.base, one.noise, one.control)),
                    ]
                )
        tables.append(
            Table(f"{panel}, sigma {sigma:g}: one setting changed at a time, paired over training seeds", header, body)
        )
    return tables


def _points(one: Comparison | None) -> str:
    if one is None:
        return ABSENT
    if len(one.seeds) < 2:
        return fixed(one.mean, sign=True)
    star = "*" if one.p_holm < SIGNIFICANT else "=" if one.p_equal_holm < SIGNIFICANT else ""
    return f"{fixed(one.mean, sign=True)} +- {fixed(one.ci95)}{star}"
