"""Entries of docs/reference/monte_carlo.md: coverage of intervals, and what a target costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.claims.page import Claim, Page, content

SYNTHETIC, RECORDED, REDUCTION = (
    f"bench/results/coverage/{name}.json" for name in ("2026-12-01-synthetic", "recorded", "variance_reduction")
)
NORMAL_95 = 1.959964
# A setting with a target, and the one of the same population and slices with a fixed number of chips.
PAIRS = (
    ("target, slices", "10 tilings"),
    ("target, 98 %", "98 %, 10 tilings"),
    ("target, 98 %, chips differ much", "98 %, chips differ much, 5 tilings"),
    ("target, skewed chips", "skewed chips, 10 tilings"),
    ("target, whole sets", "whole sets"),
)
# Words in the names of settings with rare bad chips, or accuracies near 0 and 1.
HARD = ("slices of 10", "99", "0.3 %", "dead", "bad chips", "bimodal", "collapsed", "noise", "hardly", "two images")


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
        mark = " (conservative)" if entry["conservative_share"] > 0.5 else ""
        ekl = "{}" if "ekl_coverage" in entry else ""
        found.append(
            Claim(
                f"| {label(entry)} | {{}} | {{}} | {size} | {{}} | {{}} | {{}}{mark} | {{}} | {ekl} |",
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
    of_all = 100 * entry["coverage_of_all"]
    return [100 * entry["accuracy"], 100 * entry["chip_std"], *coverage(entry), of_all, *ekl]


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
    """The largest of the usual settings with a target, and that of 1 % dead chips."""
    return [max(abs(bias(file, entry["name"])) for entry in with_target(file)), bias(file, "target, 1 % dead chips")]


def too_low(file: Any) -> list[float]:
    """By how many percent `.std` is too low at most, and below one tiling."""
    low = {e["name"]: 100 * (1 - e["std_estimate"] / e["chip_std"]) for e in with_target(file)}
    below = low.pop("target met below one tiling")
    return [max(low.values()), below]


def with_target(file: Any) -> list[dict[str, Any]]:
    """The settings with a target, without the hard ones."""
    return [e for e in file["results"] if e["target_ci"] and not any(word in e["name"] for word in HARD)]


def more_chips(file: Any) -> list[float]:
    """By how many percent a target takes more chips than a known variance would, least and most."""
    found = []
    for target, fixed in PAIRS:
        ours, known = setting(file, target), setting(file, fixed)
        variance = known["std_of_means"] ** 2 * known["runs_mean"]
        found.append(100 * (ours["runs_mean"] / (variance * (NORMAL_95 / ours["target_ci"]) ** 2) - 1))
    return [min(found), max(found)]


def more(text: str) -> Claim:
    return Claim(text, [SYNTHETIC], more_chips)


def whole_network(file: Any) -> Sequence[float]:
    entry = file["results"][0]
    return [100 * entry["accuracy"], 100 * entry["chip_std"]]


STATISTICS = Page(
    "docs/reference/monte_carlo.md",
    [
        *rows(),
        Claim(
            "The bias is at most {} % of the mean's standard deviation in the usual settings, and {} % with 1 % dead "
            "chips",
            [SYNTHETIC],
            biases,
        ),
        Claim("is up to {} % too low, or {} % below one tiling", [SYNTHETIC], too_low),
        Claim("accuracy is {} %, its chip standard deviation {} points", [RECORDED], whole_network),
        more("{} to {} % more chips"),
    ],
    stated=[
        r"coverage of 95 % is 0\.7 points for 1,000 evaluations and 1\.3 points for 300",
        "must be at least 93 %",
        "At 0.3 % accuracy",
    ],
    part=r"\n## 8\..*(?=\n## 10\.)",
)
