"""Entries of docs/results/README.md: figure 3, the ablations, the demonstrations, and the page itself."""

from __future__ import annotations

from typing import Any

from bench.claims.page import Claim, Page
from bench.claims.reports import (
    ABLATIONS,
    FIGURE3,
    FOLDER,
    METHODS,
    NAMES,
    PAIRS,
    SIGMAS,
    Figures,
    accuracy,
    against,
    difference,
    equality,
    one,
)
from bench.claims.trainings import protocol, ten_trainings


def figure3() -> list[Claim]:
    labels = NAMES | {"control": "control: noise injection, logits scaled by 1/4"}
    return [
        *(
            Claim(
                f"| {label} | {{}} | {{}} | {{}} |",
                [FIGURE3],
                lambda report, variant=variant: [accuracy(report, variant, sigma=sigma) for sigma in SIGMAS],
            )
            for variant, label in labels.items()
        ),
        *(
            Claim(
                f"| {NAMES[a]} - {NAMES[b]} | {{}} +- {{}} | {{}} +- {{}} | {{}} +- {{}} |",
                [FIGURE3],
                lambda report, a=a, b=b: [v for sigma in SIGMAS for v in against(report, a, b, sigma)],
            )
            for a, b in PAIRS
        ),
        Claim(
            "p is {} for OVF at 0.3 and {} for IRS at 0.35",
            [FIGURE3],
            lambda report: [
                *difference(report, "ovf", "noise", "p_holm", sigma=0.3),
                *difference(report, "irs", "noise", "p_holm", sigma=0.35),
            ],
        ),
        Claim(
            "not shown either: adjusted p of {} to {}.",
            [FIGURE3],
            lambda report: [pick(p for pair in equality(report, *SIGMAS) for p in pair) for pick in (min, max)],
        ),
        Claim(
            "EKL at sigma 0.3: {} for noise injection, {} to {} for the other three",
            [FIGURE3],
            lambda report: [
                one(report["rows"], variant="noise", sigma=0.3)["ekl"],
                min(one(report["rows"], variant=v, sigma=0.3)["ekl"] for v in METHODS[1:]),
                max(one(report["rows"], variant=v, sigma=0.3)["ekl"] for v in METHODS[1:]),
            ],
        ),
        Claim("{} networks: five training seeds, five methods", [FIGURE3], lambda report: [len(report["networks"])]),
    ]


def ablations() -> list[Claim]:
    def scratch(report: Any) -> list[float]:
        found = [row["accuracy"] for row in report["rows"] if row["variant"] not in ("vanilla", "noise")]
        names = [row["variant"] for row in report["rows"] if row["variant"] not in ("vanilla", "noise")]
        kept = [value for value, name in zip(found, names, strict=True) if "pretrained" not in name]
        return [accuracy(report, "noise"), min(kept), max(kept)]

    def largest(report: Any) -> list[float]:
        found = []
        for row in report["rows"]:
            method, _, end = row["variant"].partition(" ")
            if method in ("ovf", "irs"):
                control = f"control {end}" if end.startswith(("n=", "pretrained")) else "control"
                found.append(abs(row["accuracy"] - accuracy(report, control)))
        return [max(found)]

    def behind(share: str, sign: int) -> Figures:
        def figures(report: Any) -> list[float]:
            found = [
                sign * (accuracy(report, f"{method} pretrained, {share}/200 epochs") - accuracy(report, method))
                for method in METHODS[1:]
            ]
            return [min(found), max(found)]

        return figures

    return [
        Claim("{} networks, those of figure 3", [ABLATIONS], lambda report: [len(report["networks"])]),
        Claim("None of {} differences is significant", [ABLATIONS], lambda report: [len(report["comparisons"])]),
        Claim("is the last, {} %. All others lie between {} and {} %", [ABLATIONS], scratch),
        Claim("with its number of feedbacks by more than {} points", [ABLATIONS], largest),
        Claim("a quarter of the noisy epochs lie {} to {} points below", [ABLATIONS], behind("50", -1)),
        Claim("with half of them {} to {}.", [ABLATIONS], behind("100", -1)),
        Claim("With all epochs they lie {} to {} above", [ABLATIONS], behind("200", 1)),
    ]


def demonstrations() -> list[Claim]:
    files = [f"{FOLDER}demo-{name}/summary.json" for name in ("digits", "mnist")]

    def at(sigma: float, method: str, *keys: str) -> Figures:
        return lambda *reports: [
            100 * one(report["sweeps"][method], sigma=sigma)["accuracy"][key] for report in reports for key in keys
        ]

    return [
        Claim("| vanilla at sigma 0.3 | {} % | {} % |", files, at(0.3, "vanilla", "mean")),
        *(
            Claim(
                f"| {NAMES[method]} at sigma 0.3 | {{}} +- {{}} % | {{}} +- {{}} % |",
                files,
                at(0.3, method, "mean", "ci95"),
            )
            for method in METHODS
        ),
        Claim(
            "| time | {} min | {} min on one thread |",
            files,
            lambda *reports: [report["seconds"] / 60 for report in reports],
        ),
    ]


RESULTS_PAGE = Page(
    "docs/results/README.md",
    [*figure3(), *protocol(), *ten_trainings(), *ablations(), *demonstrations()],
    stated=[
        r"changes the logits by about 0\.1 % \(OVF\) or 1 % \(IRS\)",  # the two betas
        r"ahead of IRS at 0\.3 and 0\.35",  # the paper
        r"At 0\.00[28]\b",
        r"\b(?:of|and) 0\.[12]\b",  # versions
        r"\| 0\.2 \| 0\.3 \| 0\.35 \|",  # sigmas
        "Intervals are 95 %",
        "2 points",  # the margin of equality
        r"learning rate 0\.002 \| 0\.008",
        r"EKL at 0\.008",
        "below 90 % of the best",
        r"p below 0\.05",
    ],
)
