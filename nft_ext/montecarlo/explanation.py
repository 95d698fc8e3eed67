"""The outcome of `explain`: what each effect and each layer costs, with paired intervals."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from nft_ext._common.files import finite_or_none, write_json
from nft_ext.metrics import holm, paired
from nft_ext.montecarlo.report.explanation_plot import plot_explanation
from nft_ext.montecarlo.report.explanation_table import explanation_table

FORMAT = "nft_ext.explanation/1"
SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Change:
    """How far the metric changes from one variant of the network to another, chip by chip.

    Attributes:
        mean: mean over chips of the change.
        ci95: half-width of its 95 % interval, for this change by itself. 0 if the change is `exact`; NaN if all chips
            change alike, which gives no interval.
        p: p-value of the paired t test; NaN without an interval.
        p_holm: p adjusted for all changes of the same table (Holm).
        chips: number of pairs.
        exact: the change has no sampling error: both variants have the same weights, or no noise.
        same: both variants have the same weights by construction, so the change is 0.
        others_at_most: where no chip changes: at most this share of all chips does, with 95 % confidence; else NaN.
    """

    mean: float
    ci95: float
    p: float
    p_holm: float
    chips: int
    exact: bool = False
    same: bool = False
    others_at_most: float = math.nan

    @property
    def significant(self) -> bool:
        """Whether it is significant at 5 % among all changes of its table. An exact change is, unless it is 0."""
        return self.mean != 0 if self.exact else self.p_holm < SIGNIFICANT


@dataclass(frozen=True)
class ExplanationRow:
    """One effect, or one layer or group of layers.

    Attributes:
        kind: "effect" or "layer".
        name: of the effect, layer or group.
        text: its numbers in words, or the number of layers of a group.
        without: the change when it is switched off and everything else stays on; None if it was not evaluated.
        alone: the change when it is the only one switched on; None if it was not evaluated.
    """

    kind: str
    name: str
    text: str
    without: Change | None
    alone: Change | None

    @property
    def effect(self) -> float:
        """The change that it causes, (alone - without) / 2, the mean of both views. NaN where one is missing."""
        if self.without is None or self.alone is None:
            return math.nan
        return (self.alone.mean - self.without.mean) / 2


@dataclass(frozen=True, eq=False)
class Explanation:
    """The outcome of `explain`. `str(explanation)` is a table whose first lines name what costs most.

    Attributes:
        metric: name of the metric. Changes have its unit: a fraction for accuracy.
        runs: chips per variant. Chip r is draw r of `seed` in every variant.
        images: images of the data.
        images_per_chip: images that each chip saw.
        seed: seed of the chips.
        conditions: the device in words, in one line.
        full: (mean, half-width of its 95 % interval) of the metric with everything on.
        quantized: the same without noise.
        ideal: the same with float weights.
        quantizer: change from float weights to quantized weights without noise.
        noise: change from quantized weights to everything on.
        rows: effects in a fixed order, then layers in the order of the model.
        per_chip: name of a variant -> the metric of every chip; one value for a variant without noise.
        screened: layers that a first look on other chips put together into one group; else empty.
        inferences: images times chips, over all variants.
        seconds: wall time.
        example: what one entry of the data is called in texts.
        interrupted: True if it stopped early. Rows then lack what was not evaluated.
        notes: remarks that a reader needs.
        versions: name -> version.
    """

    metric: str
    runs: int
    images: int
    images_per_chip: int
    seed: int
    conditions: str
    full: tuple[float, float]
    quantized: tuple[float, float]
    ideal: tuple[float, float]
    quantizer: Change
    noise: Change
    rows: list[ExplanationRow]
    per_chip: dict[str, list[float]]
    screened: list[str]
    inferences: int
    seconds: float
    example: str = "image"
    interrupted: bool = False
    notes: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def effects(self) -> list[ExplanationRow]:
        """The rows of effects."""
        return [row for row in self.rows if row.kind == "effect"]

    @property
    def layers(self) -> list[ExplanationRow]:
        """The rows of layers and groups of layers."""
        return [row for row in self.rows if row.kind == "layer"]

    def most(self, kind: str) -> list[ExplanationRow]:
        """The rows of a kind that do harm, most harmful first.

        Harm is `ExplanationRow.effect` in the direction of the whole change from float weights. A row counts if one of
        its two changes is significant in this direction.

        Args:
            kind: "effect" or "layer".
        """
        down = 1.0 if self.full[0] <= self.ideal[0] else -1.0
        found = []
        for row in self.rows:
            if row.kind != kind or math.isnan(row.effect) or row.without is None or row.alone is None:
                continue
            harms = (row.without.significant and down * row.without.mean > 0) or (
                row.alone.significant and down * row.alone.mean < 0
            )
            if harms and down * row.effect < 0:
                found.append(row)
        return sorted(found, key=lambda row: down * row.effect)

    def table(self) -> str:
        """The explanation as text."""
        return explanation_table(self)

    __str__ = table

    def plot(self, path: str | os.PathLike) -> None:
        """Writes a figure with both changes of every row, with their 95 % intervals.

        Args:
            path: the file; its suffix selects PNG, PDF or SVG.

        Raises:
            ImportError: matplotlib is not installed. The message has the command that installs it.
        """
        plot_explanation(self, path)

    def to_dict(self) -> dict[str, Any]:
        """The whole explanation as JSON values."""
        content = {name: value for name, value in vars(self).items() if name != "rows"}
        content |= {name: vars(getattr(self, name)) for name in ("quantizer", "noise")}
        content["rows"] = [
            vars(row) | {view: c and vars(c) for view, c in (("without", row.without), ("alone", row.alone))}
            for row in self.rows
        ]
        return finite_or_none({"format": FORMAT, **content})

    def to_json(self, path: str | os.PathLike) -> None:
        """Writes `to_dict()` to a file."""
        write_json(path, self.to_dict(), strict=True)


def change(one: np.ndarray, other: np.ndarray, *, exact: bool, same: bool) -> Change:
    """The change from `other` to `one`, chip by chip. Chips without a value in one of them are left out.

    Args:
        one, other: [runs] metric per chip.
        exact: whether neither has a sampling error.
        same: whether both have the same weights.
    """
    both = ~np.isnan(one) & ~np.isnan(other)
    n = int(both.sum())
    if same or exact:
        mean = 0.0 if same else float((one - other)[both].mean()) if n else math.nan
        return Change(mean, 0.0, math.nan, math.nan, n, exact=True, same=same)
    if n < 2:
        return Change(math.nan, math.nan, math.nan, math.nan, n)
    found = paired(one[both], other[both])
    if found.ci95 > 0:
        return Change(found.mean, found.ci95, found.p_t, math.nan, n)
    # All pairs are alike. A t interval of width 0 would claim that this holds for every chip.
    others = 1 - 0.05 ** (1 / n) if found.mean == 0 else math.nan
    return Change(found.mean, math.nan, math.nan, math.nan, n, others_at_most=others)


def adjusted(rows: list[ExplanationRow]) -> list[ExplanationRow]:
    """The rows with Holm's p-values. All changes of one kind of rows are one family."""
    found = []
    for kind in dict.fromkeys(row.kind for row in rows):
        family = [row for row in rows if row.kind == kind]
        changes = [view for row in family for view in (row.without, row.alone)]
        p = iter(holm([math.nan if view is None else view.p for view in changes]))
        views = iter([view and replace(view, p_holm=p_holm) for view, p_holm in zip(changes, p)])
        found += [replace(row, without=next(views), alone=next(views)) for row in family]
    return found
