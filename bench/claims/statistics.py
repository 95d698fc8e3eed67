"""Entries of docs/reference/monte_carlo.md: coverage of intervals, and what a target costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from bench.claims.page import Claim, Page, content

SYNTHETIC, RECORDED, REDUCTION = (
    f"bench/results/coverage/{name}.json" for name in ("synthetic", "recorded", "variance_reduction")
)
NORMAL_95 = 1.959964
# A setting with a target, and the one of the same population and slices with a fixed number of chips.
PAIRS = (
    (SYNTHETIC, "target, slices", "10 tilings"),
    (SYNTHETIC, "target, 98 %", "98 %, 10 tilings"),
    (SYNTHETIC, "target, 98 %, chips differ much", "98 %, chips differ much, 5 tilings"),
    (SYNTHETIC, "target, skewed chips", "skewed chips, 10 tilings"),
    (SYNTHETIC, "target, whole sets", "whole sets"),
    *((RECORDED, f"real network, target, n = {n}", f"real network, n = {n}") for n in (18, 36, 90)),
    (RECORDED, "real network, target, whole sets", "real network, whole sets"),
)


def setting(file: Any, name: str) -> dict[str, Any]:
    (found,) = [entry for entry in file["results"] if entry["name"] == name]
    return found


def label(entry: dict[str, Any]) -> str:
    name = entry["name"].removeprefix("real network, ")
    return f"{name}, {entry['target_ci']:.3g}" if entry["target_ci"] else name


def rows() -> list[Claim]:
    found = []
    for entry in content(SYNTHETIC)["results"]:
        size = f"{entry['n']} of {entry['images']}"
        mark = " (conservative)" if entry["conservative_share"] else ""
        ekl = "{}" if "ekl_coverage" in entry else ""
        found.append(
            Claim(
                f"| {label(entry)} | {{}} | {{}} | {size} | {{}} | {{}} | {{}}{mark} | {ekl} |",
                [SYNTHETIC],
                lambda file, name=entry["name"]: synthetic(setting(file, name)),
            )
        )
    for entry in content(RECORDED)["results"]:
        mark = " (conservative)" if entry["conservative_share"] else ""
        found.append(
            Claim(
                f"| {label(entry)} | {entry['n']} of {entry['images']} | {{}} | {{}} | {{}}{mark} |",
                [RECORDED],
                lambda file, name=entry["name"]: coverage(setting(file, name)),
            )
        )
    for index, entry in enumerate(content(REDUCTION)):
        found.append(
            Claim(
                f"| {entry['trained']} | {entry['sigma']} | {{}} | {{}} | {{}} +- {{}} | {{}} | {{}} | {{}} |",
                [REDUCTION],
                lambda file, index=index: reduction(file[index]),
            )
        )
    return found


def coverage(entry: dict[str, Any]) -> list[float]:
    return [entry["runs_mean"], entry["tilings_mean"], 100 * entry["coverage"]]


def synthetic(entry: dict[str, Any]) -> list[float]:
    ekl = [100 * entry["ekl_coverage"]] if "ekl_coverage" in entry else []
    return [100 * entry["accuracy"], 100 * entry["chip_std"], *coverage(entry), *ekl]


def reduction(entry: dict[str, Any]) -> list[float]:
    return [
        100 * entry["accuracy"],
        100 * entry["chip_std"],
        entry["pair_correlation"],
        entry["correlation_standard_error"],
        entry["antithetic_gain"],
        entry["control_correlation"],
        entry["control_gain"],
    ]


def bias(file: Any, name: str) -> float:
    """Percent of the mean's standard deviation."""
    entry = setting(file, name)
    return 100 * entry["mean_error"] / entry["std_of_means"]


def biases(file: Any) -> list[float]:
    names = [entry["name"] for entry in file["results"] if entry["target_ci"]]
    normal = [name for name in names if not any(word in name for word in ("skewed", "differ much", "below one"))]
    return [
        bias(file, "target, skewed chips"),
        bias(file, "target, 98 %, chips differ much"),
        math.ceil(max(bias(file, name) for name in normal)),
        bias(file, "target met below one tiling"),
    ]


def too_low(file: Any) -> list[float]:
    """By how many percent `.std` is too low at most, and below one tiling."""
    low = {e["name"]: 100 * (1 - e["std_estimate"] / e["chip_std"]) for e in file["results"] if e["target_ci"]}
    below = low.pop("target met below one tiling")
    return [max(low.values()), below]


def more_chips(*files: Any) -> list[float]:
    """By how many percent a target takes more chips than a known variance would, least and most."""
    by_path = dict(zip((SYNTHETIC, RECORDED), files, strict=True))
    found = []
    for path, target, fixed in PAIRS:
        ours, known = setting(by_path[path], target), setting(by_path[path], fixed)
        variance = known["std_of_means"] ** 2 * known["runs_mean"]
        found.append(100 * (ours["runs_mean"] / (variance * (NORMAL_95 / ours["target_ci"]) ** 2) - 1))
    return [min(found), max(found)]


def more(text: str) -> Claim:
    return Claim(text, [SYNTHETIC, RECORDED], more_chips)


def whole_network(file: Any) -> Sequence[float]:
    entry = file["results"][0]
    return [100 * entry["accuracy"], 100 * entry["chip_std"]]


STATISTICS = Page(
    "docs/reference/monte_carlo.md",
    [
        *rows(),
        Claim(
            "The bias is {} % of the mean's standard deviation with skewed chips, and {} % at 98 % accuracy with very "
            "different chips. With normal chips it is less than {} %, or {} % below one tiling.",
            [SYNTHETIC],
            biases,
        ),
        Claim("is up to {} % too low, or {} % below one tiling", [SYNTHETIC], too_low),
        Claim("accuracy is {} %, its chip standard deviation {} points", [RECORDED], whole_network),
        more("{} to {} % more chips"),
    ],
    stated=[
        "whose 95 % interval",
        r"standard error of coverage is 0\.2 points",
        r"must be 93\.5 to 96\.5 %",
    ],
    part=r"\n## 8\..*(?=\n## 10\.)",
)
