"""Entries of the decisions and the guides, which state few figures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bench.claims.page import ROOT, Claim, Page
from bench.claims.performance import PATHS, PERFORMANCE
from bench.claims.statistics import more
from bench.claims.timings import MICRO, MILLI, gpu, gpu_mode

DECISIONS = "docs/design/decisions"


def eight_bits(file: Any) -> list[float]:
    cases = file["stages"]["int8"]["found"]["cases"]
    ratios = [row["ratio"] for case in cases for row in case["compared"]]
    return [min(ratios), max(ratios), len(cases)]


SENTENCES = ["bench/results/2026-12-01-sentences.json"]


def sentences(scale: str) -> Callable[[Any], list[float]]:
    def figures(file: Any) -> list[float]:
        rows = file["scales"][scale]["chips"]
        return [rows[name][key] for name in ("cosine", "pearson", "recall@1") for key in ("mean", "ci95")]

    return figures


EXPLANATION = ["docs/figures/explanation.json"]


def changes(file: Any, name: str) -> list[float]:
    (row,) = [row for row in file["rows"] if row["name"] == name]
    return [row[view]["mean"] for view in ("without", "alone")]


CLAIMS = {
    f"{DECISIONS}/index.md": [
        Claim(
            "{} to {} times the speed of our own bfloat16 in all {} cases on the H100",
            [PATHS["h100-octets"]],
            eight_bits,
        )
    ],
    "docs/guide/several_machines.md": [
        Claim(
            "[{} kills]", ["bench/results/2026-11-24-kills.json"], lambda file: [file["kills"] * file["nothing_lost"]]
        )
    ],
    "docs/guide/cuda.md": [
        Claim(
            "ResNet-18 at 128 images then takes {} us against PyTorch's {} us",
            [PATHS["h100-cudnn"]],
            lambda file: gpu_mode("network", "resnet18-128-bf16", MICRO, mode="eager")(file)[:2],
        ),
        Claim(
            "an OVF step {} ms against {} ms",
            [PATHS["h100-octets"]],
            lambda file: gpu_mode("training", "ovf-step:", MILLI, mode="eager")(file)[:2],
        ),
        Claim(
            "ours has {} times its speed",
            [PATHS["h100-cudnn"]],
            lambda file: gpu("network", "resnet18-128-fp32", "fp32 one normal against one normal")(file)[2:],
        ),
    ],
    "docs/guide/where_accuracy_goes.md": [
        Claim("The network loses {} points", EXPLANATION, lambda file: [100 * (file["ideal"][0] - file["full"][0])]),
        Claim(
            "Without the noise of conv1, chips have {} points more",
            EXPLANATION,
            lambda file: [100 * changes(file, "conv1")[0]],
        ),
        Claim("Noise in conv1 alone costs {} points", EXPLANATION, lambda file: [-100 * changes(file, "conv1")[1]]),
    ],
    "docs/guide/stacks.md": [
        Claim("at sigma {}, {} chips:", SENTENCES, lambda file: [file["sigma"], file["runs"]]),
        Claim("and on {} news", SENTENCES, lambda file: [file["documents"]]),
        Claim(
            "| plain | {} | {} | {} |",
            SENTENCES,
            lambda file: [file["plain"][name] for name in ("cosine", "pearson", "recall@1")],
        ),
        *(
            Claim(f'| `scale="{scale}"` | {{}} ± {{}} | {{}} ± {{}} | {{}} ± {{}} |', SENTENCES, sentences(scale))
            for scale in ("output", "layer")
        ),
    ],
    f"{DECISIONS}/monte_carlo.md": [more("targets take {} to {} % more chips")],
}
# What no measurement gave: versions, limits in the code, levels of confidence, arithmetic.
STATED = {
    "docs/guide/reproduce.md": [
        r"0\.5, 0\.5|0\.1307, 0\.3081",
        "90 %, the others validate",
        "split of 10 %",
        "within 2 points",
        r"= 4 times the epochs",
        # Measured by the command above each table.
        r"20\.8 \| 93\.3|64\.7 \| 95\.5",
        r"\| (?:1\.6|0\.4|1\.3|1\.4|4\.3) \|\n",
    ],
    "docs/quickstart.md": ["95 %"],
    "docs/guide/devices.md": [r"1\.0 by default"],
    "docs/guide/monte_carlo.md": ["95 %", "0 and 100 %"],
    "docs/guide/where_accuracy_goes.md": ["10 %", "95 %", "2 % of the devices"],
    "docs/guide/several_machines.md": ["30 s", r"3\.11, 3\.12", r"0\.2"],
    f"{DECISIONS}/build.md": [r"2\.11", r"0\.2", r"0\.4"],
    f"{DECISIONS}/cpu.md": ["128 MB"],
    f"{DECISIONS}/cuda.md": ["512 MiB"],
    f"{DECISIONS}/layers.md": [r"0\.4"],
    f"{DECISIONS}/monte_carlo.md": ["18 % or more", r"1\.006 at 100 pairs"],
    f"{DECISIONS}/noise.md": [r"0\.[123]"],
    f"{DECISIONS}/tests.md": ["50 ms"],
    f"{DECISIONS}/training.md": [r"p below 0\.05", "90 %", "2 points", r"N \+ 1 times", r"0\.[12]"],
}
FOLDERS = ("bench", "docs", DECISIONS, "docs/guide")  # subfolders not included
ELSEWHERE = {PERFORMANCE.path}
OTHERS = [
    Page(path, CLAIMS.get(path, []), STATED.get(path, []))
    for folder in FOLDERS
    for path in sorted(str(file.relative_to(ROOT)) for file in (ROOT / folder).glob("*.md"))
    if path not in ELSEWHERE
]
