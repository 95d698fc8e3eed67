"""Finished cells as rows of a table, and comparisons of methods with training seeds as replicates."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nft_ext._common.checks import fail
from nft_ext.metrics import equivalence, over_seeds
from nft_ext.metrics import holm as adjusted
from nft_ext.reproduce import published

CONTROLS = ("control", "control-ovf", "control-irs")
ORDER = ("vanilla", "noise", "control", "control-ovf", "control-irs", "censored", "correctnet", "ovf", "irs")
MARGIN = 2.0  # points; methods that differ by less count as equal
SIGNIFICANT = 0.05
NO_CLAIM = "one training seed: no claim about methods is possible"


@dataclass(frozen=True)
class Row:
    """One panel, variant and sigma over its training seeds. Accuracies in percent, EKL and NLL in nat.

    Undefined numbers are NaN.

    Attributes:
        trained_sigma: sigma of the training, None without noise.
        accuracy: mean over seeds and chips.
        seed_ci95: half-width of its 95 % interval over training seeds. NaN for one seed.
        noise_ci95: the same over chips, for these networks.
        per_seed: mean over chips, one per seed.
        clean: accuracy of the quantized weights without noise.
        ekl: mean over the seeds with a right answer. ekl_per_seed: NaN without a right answer.
        ece, nll: means over seeds.
        temperature: geometric mean of the temperatures fitted on validation images.
        ekl_fitted, nll_fitted, ece_fitted: means with each network's logits divided by its temperature. NaN unless all
            seeds have them.
        published, published_ekl: the paper's values, or None. The paper does not name the model of its EKL.
    """

    panel: str
    variant: str
    sigma: float
    trained_sigma: float | None
    seeds: tuple[int, ...]
    accuracy: float
    seed_ci95: float
    noise_ci95: float
    per_seed: tuple[float, ...]
    clean: float
    clean_per_seed: tuple[float, ...]
    ekl: float
    ekl_per_seed: tuple[float, ...]
    ece: float
    nll: float
    temperature: float
    ekl_fitted: float
    nll_fitted: float
    ece_fitted: float
    chips: int
    images: int
    published: float | None
    published_ekl: float | None

    @property
    def difference(self) -> float | None:
        """Our accuracy minus the paper's, in points."""
        return None if self.published is None else self.accuracy - self.published


@dataclass(frozen=True)
class Comparison:
    """Variant `a` minus variant `b` in points, paired over the training seeds that both have.

    Attributes:
        seeds: these training seeds.
        ci95: half-width of the 95 % interval. NaN below two seeds, as both p.
        p: two-sided paired t test.
        p_holm: p adjusted for all comparisons of the report (Holm).
        p_equal: two one-sided t tests for a difference within +-`MARGIN` points.
        p_equal_holm: p_equal adjusted for all comparisons of the report (Holm).
    """

    panel: str
    sigma: float
    a: str
    b: str
    seeds: tuple[int, ...]
    mean: float
    ci95: float
    p: float
    p_holm: float = math.nan
    p_equal: float = math.nan
    p_equal_holm: float = math.nan

    @property
    def outcome(self) -> str:
        """What the adjusted tests show: "differ", "equal", "differ, < 2 points", or "open" if neither is shown."""
        if len(self.seeds) < 2:
            return ""
        small = f"< {MARGIN:g} points"
        if self.p_holm < SIGNIFICANT:
            return f"differ, {small}" if self.p_equal_holm < SIGNIFICANT else "differ"
        return f"equal, {small}" if self.p_equal_holm < SIGNIFICANT else "open"

    def __str__(self) -> str:
        head = f"{self.a} - {self.b}: {self.mean:+.2f}"
        if len(self.seeds) < 2:
            return f"{head} points ({NO_CLAIM})"
        tests = f"p = {self.p:.2g}, p for less than {MARGIN:g} points = {self.p_equal:.2g}"
        return f"{head} +- {self.ci95:.2f} points (95 %, {len(self.seeds)} seeds), {tests}"


def rank(variant: str) -> tuple:
    """Sort key: methods in the order of the paper's figures.

    Within a method: its variants, numbers of feedbacks, pretrained ones. The first two entries name the group.
    """
    base, _, rest = variant.partition(" ")
    place = ORDER.index(base) if base in ORDER else len(ORDER)
    group = 1 if rest.startswith("n=") else 2 if rest.startswith("pretrained") else 0
    numbers = tuple(int(digits) for digits in re.findall(r"\d+", rest)) if group else ()
    return place, group, numbers, variant


def _panel_rank(panel: str) -> tuple:
    known = list(published.facts()["accuracy_percent"])
    return (known.index(panel) if panel in known else len(known)), panel


def rows(cells: Sequence[dict[str, Any]]) -> list[Row]:
    """One row per panel, variant and sigma, in the order of the paper's figures.

    Raises:
        ValueError: two cells have the same panel, variant, sigma and seed, or cells of one row differ in more than the
            seed, also in what a search chose.
    """
    together: dict[tuple[str, float, str], dict[int, tuple[dict, dict]]] = {}
    for cell in cells:
        config = cell["config"]
        for point in cell["points"]:
            line = together.setdefault((config["panel"], point["sigma"], config["variant"]), {})
            if config["seed"] in line:
                fail(
                    "cells",
                    "must hold one cell per panel, variant, sigma and seed",
                    f"{line[config['seed']][0]['key']} and {cell['key']}",
                )
            line[config["seed"]] = (cell, point)
    order = sorted(together, key=lambda key: (_panel_rank(key[0]), key[1], rank(key[2])))
    return [_row(*key, [together[key][seed] for seed in sorted(together[key])]) for key in order]


def _row(panel: str, sigma: float, variant: str, found: list[tuple[dict, dict]]) -> Row:
    first = found[0][0]
    for cell, point in found[1:]:
        if _but_seed(cell) != _but_seed(first) or len(point["accuracy"]) != len(found[0][1]["accuracy"]):
            fail(
                "cells",
                "must differ only in the seed within a row",
                f"{first['key']} and {cell['key']}",
            )
    accuracy = over_seeds(np.array([point["accuracy"] for _, point in found]))
    clean = [100 * cell["clean"] for cell, _ in found]
    ekl = [math.nan if point["ekl"] is None else point["ekl"] for _, point in found]
    known = [value for value in ekl if math.isfinite(value)]
    fitted = [point.get("at_temperature") or {} for _, point in found]
    return Row(
        panel=panel,
        variant=variant,
        sigma=sigma,
        trained_sigma=first["config"]["sigma"],
        seeds=tuple(cell["config"]["seed"] for cell, _ in found),
        accuracy=100 * accuracy.mean,
        seed_ci95=100 * accuracy.seed_ci95,
        noise_ci95=100 * accuracy.noise_ci95,
        per_seed=tuple(100 * mean for mean in accuracy.seed_means),
        clean=float(np.mean(clean)),
        clean_per_seed=tuple(clean),
        ekl=float(np.mean(known)) if known else math.nan,
        ekl_per_seed=tuple(ekl),
        ece=float(np.mean([point["ece"] for _, point in found])),
        nll=_mean([point["nll"] for _, point in found]),
        temperature=math.exp(_mean([math.log(one["temperature"]) if one else None for one in fitted])),
        ekl_fitted=_mean([one.get("ekl") for one in fitted]),
        nll_fitted=_mean([one.get("nll") for one in fitted]),
        ece_fitted=_mean([one.get("ece") for one in fitted]),
        chips=accuracy.runs,
        images=found[0][1]["images"],
        published=published.accuracy(panel, variant, sigma),
        published_ekl=published.ekl(variant, sigma),
    )


def _mean(values: Sequence[float | None]) -> float:
    """The mean, NaN if a value is missing."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else math.nan


def _but_seed(cell: dict[str, Any]) -> dict[str, Any]:
    chosen = cell.get("tuned", {}).get("value")  # two machines could choose differently
    return {name: value for name, value in cell["config"].items() if name != "seed"} | {"chosen": chosen}


def standards(variant: str) -> tuple[str, ...]:
    """The variants that a variant is compared with.

    - OVF and IRS: noise injection, also with tuned temperature, their control, and OVF also with noise injection at
      equal compute. Their own variants: the plain method, too.
    - A control, tuned noise injection and noise injection at equal compute: noise injection, the latter two also with
      the control.

    A pretrained variant has more epochs than noise injection, so it is compared with its control and the plain method.
    Another N has another factor 1/(N+1), so it is compared with noise injection and the control of this N.
    """
    base, _, rest = variant.partition(" ")
    pretrained, numbered = rest.startswith("pretrained"), rest.startswith("n=")
    noise = () if pretrained else ("noise",)
    if base in CONTROLS:
        return noise
    if base == "noise":
        return ("noise", *CONTROLS) if rest in ("tuned", "compute") else ()
    if base not in ("ovf", "irs"):
        return ()
    own = f" {rest}" if numbered or pretrained else ""  # other variants keep factor and epochs
    controls = (f"control{own}", f"control-{base}{own}")
    stronger = () if own else ("noise tuned", *(("noise compute",) if base == "ovf" else ()))
    return (*noise, *controls, *stronger, *((base,) if rest and not numbered else ()))


def comparisons(table: Sequence[Row]) -> list[Comparison]:
    """Every row against its `standards`, if both are in `table` and share a training seed."""
    at = {(row.panel, row.sigma, row.variant): row for row in table}
    found = []
    for row in table:
        for name in standards(row.variant):
            one = compared(row, at.get((row.panel, row.sigma, name)))
            if one is not None:
                found.append(one)
    return holm(found)


def compared(row: Row, other: Row | None) -> Comparison | None:
    """`row` minus `other`, None if `other` is missing or shares no training seed."""
    if other is None:
        return None
    shared = tuple(seed for seed in row.seeds if seed in other.seeds)
    if not shared:
        return None
    a, b = ([of.per_seed[of.seeds.index(seed)] for seed in shared] for of in (row, other))
    where = (row.panel, row.sigma, row.variant, other.variant, shared)
    if len(shared) < 2:
        return Comparison(*where, a[0] - b[0], math.nan, math.nan)
    tested = equivalence(np.array(a), np.array(b), margin=MARGIN, shared_seeds=True)
    one = tested.difference
    return Comparison(*where, one.mean, one.ci95, one.p, p_equal=tested.p)


def holm(found: Sequence[Comparison]) -> list[Comparison]:
    """`found` with adjusted p-values. The tests for a difference are one family, those for equality another."""
    differ, equal = (adjusted([getattr(one, name) for one in found]) for name in ("p", "p_equal"))
    return [dataclasses.replace(one, p_holm=p, p_equal_holm=q) for one, p, q in zip(found, differ, equal, strict=True)]
