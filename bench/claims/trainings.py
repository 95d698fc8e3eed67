"""Entries of docs/results/README.md: the protocol's settings and ten trainings per method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.claims.page import Claim
from bench.claims.reports import (
    FAST,
    METHODS,
    NAMES,
    PROTOCOL,
    SLOW,
    WIDTHS,
    Figures,
    accuracy,
    against,
    control_adjusted,
    difference,
    equality,
    failing,
    one,
)


def protocol() -> list[Claim]:
    def settings(suffix: str) -> Figures:
        return lambda report: [accuracy(report, f"{method}{suffix}") for method in METHODS]

    rows = {
        "as it is: learning rate 0.002": "",
        "learning rate 0.008": " lr x4",
        "learning rate 0.0005": " lr /4",
        "15 epochs": " epochs x3",
        "last epoch kept": " last epoch",
        "epoch best on the test set on one fixed chip": " test selection",
    }
    fast = [("control", "noise"), ("ovf", "noise"), ("irs", "noise")]
    everywhere = ["", " lr x4", " lr /4", " last epoch", " test selection", " epochs x3"]

    def beside_control(method: str, suffixes: Sequence[str]) -> Figures:
        def figures(report: Any) -> list[float]:
            found = [difference(report, f"{method}{s}", f"control{s}", "mean")[0] for s in suffixes]
            return [min(found), max(found)]

        return figures

    return [
        *(Claim(f"| {label} | {{}} | {{}} | {{}} | {{}} |", [PROTOCOL], settings(end)) for label, end in rows.items()),
        Claim(
            "| as above | as above | {} | as above |", [PROTOCOL], lambda r: [accuracy(r, "ovf feedback statistics")]
        ),
        *(
            Claim(
                f"| {NAMES[a]} - {NAMES[b]} | {{}} +- {{}} | {{}}, {{}} |",
                [PROTOCOL],
                lambda report, a=a, b=b: difference(report, f"{a} lr x4", f"{b} lr x4", "mean", "ci95", "p", "p_holm"),
            )
            for a, b in fast
        ),
        *(
            Claim(
                f"| {NAMES[a]} - control | {{}} +- {{}} | |",
                [PROTOCOL],
                lambda report, a=a: difference(report, f"{a} lr x4", "control lr x4"),
            )
            for a in ("ovf", "irs")
        ),
        Claim(
            "which the paper does not have, has {} % and OVF {} %",
            [PROTOCOL],
            lambda r: [accuracy(r, f"{method} lr x4") for method in ("control", "ovf")],
        ),
        Claim("It loses {} +- {} points.", [PROTOCOL], lambda r: loss(difference(r, "noise lr x4", "noise"))),
        Claim("than its interval: {} to {} points.", [PROTOCOL], beside_control("ovf", everywhere)),
        Claim("IRS: {} to {}, but", [PROTOCOL], beside_control("irs", [s for s in everywhere if s != " lr x4"])),
        Claim(
            "but {} at four times the rate", [PROTOCOL], lambda r: difference(r, "irs lr x4", "control lr x4", "mean")
        ),
        Claim("noise injection gains {} +- {} points", [PROTOCOL], lambda r: difference(r, "noise epochs x3", "noise")),
        Claim("the one difference of {} with p below", [PROTOCOL], lambda report: [len(report["comparisons"])]),
        Claim("{} networks: {} of 0.1 and {} of 0.2. A pair", [PROTOCOL], made_with),
        Claim(
            "noise injection {} and {} % at width 0.125, {} and {} % at width 0.5; the control {} and {} %, "
            "then {} and {} %",
            WIDTHS,
            lambda *reports: [
                value
                for variant in ("noise", "control")
                for report in reports
                for value in one(report["rows"], variant=variant)["per_seed"]
            ],
        ),
    ]


def loss(found: list[float]) -> list[float]:
    return [-found[0], found[1]]


def made_with(report: Any) -> list[float]:
    versions = [network["nft_ext"] for network in report["networks"].values()]
    return [len(versions), versions.count("0.1.0"), versions.count("0.2.0")]


def ten_trainings() -> list[Claim]:
    def means(report: Any) -> list[float]:
        rows = [one(report["rows"], variant=variant) for variant in METHODS]
        return [value for row in rows for value in (row["accuracy"], row["seed_ci95"])]

    def published(report: Any) -> list[float]:
        return [one(report["rows"], variant=variant)["published"] for variant in ("noise", "ovf", "irs")]

    def failures(criterion: str) -> Figures:
        return lambda report: [failing(report, criterion, variant) for variant in METHODS]

    cells = " | ".join(["{} +- {}"] * 4)
    return [
        *(
            Claim(f"| learning rate {rate} | {cells} |", [file], means)
            for rate, file in (("0.002", SLOW), ("0.008", FAST))
        ),
        Claim("| the paper's means, its own protocol | {} | - | {} | {} |", [SLOW], published),
        *(
            Claim(
                f"| {NAMES[a]} - {NAMES[b]} | {{}} +- {{}} ({{}}) | {{}} +- {{}} ({{}}) |",
                [SLOW, FAST],
                lambda *reports, a=a, b=b: [
                    value for report in reports for value in difference(report, a, b, "mean", "ci95", "p_holm")
                ],
            )
            for a in ("ovf", "irs")
            for b in ("noise", "control")
        ),
        *(
            Claim(f"| {label}, {rate} | {{}} | {{}} | {{}} | {{}} |", [file], failures(criterion))
            for label, criterion in (
                ("the paper's criterion", "relative"),
                ("below 90 % of the best clean accuracy", "absolute"),
            )
            for rate, file in (("0.002", SLOW), ("0.008", FAST))
        ),
        Claim(
            "| the paper's count | {} | - | {} | {} |",
            [SLOW],
            lambda report: [one(report["convergence"], variant=v)["paper"][0] for v in ("noise", "ovf", "irs")],
        ),
        Claim(
            "So does the control: {} +- {} and {} +- {} points, p {} and {} after Holm's correction over five",
            [SLOW, FAST],
            lambda *reports: [
                *(value for report in reports for value in against(report, "control", "noise", 0.35)),
                *map(control_adjusted, reports),
            ],
        ),
        Claim(
            "within 2 points {} (OVF) and {} (IRS) at 0.002",
            [SLOW],
            lambda report: equality(report, 0.35)[0],
        ),
        Claim(
            "EKL at 0.008: {}, {}, {} and {}; at the fitted temperature {}, {}, {} and {}",
            [FAST],
            lambda report: [
                one(report["rows"], variant=variant)[key] for key in ("ekl", "ekl_fitted") for variant in METHODS
            ],
        ),
    ]
