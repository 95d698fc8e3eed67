"""Targets, and whether the measured values reach them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench.gpu.stages import Outcome

MOST_ROWS = 256  # rows per chip up to which the one-pass product should win


def _cases(outcomes: Mapping[str, Outcome], stage: str) -> list[dict[str, Any]]:
    outcome = outcomes.get(stage)
    return list(outcome.found.get("cases", ())) if outcome is not None and isinstance(outcome.found, dict) else []


def _pairs(case: Mapping[str, Any], against: str, precision: str = "bf16", ours: str = "one") -> list[dict[str, Any]]:
    wanted = {"precision": precision, "ours_draws": ours, "against_draws": against, "cached": True}
    return [c for c in case["compared"] if all(c[k] == v for k, v in wanted.items())]


def _target(rule: str, found: list[tuple[float, str]], limit: float, at_least: bool = True) -> dict[str, Any]:
    """Judged by the worst value."""
    if not found:
        return {"rule": rule, "value": None, "reached": None, "what": "", "why": "nothing right stands on both sides"}
    value, what = (min if at_least else max)(found)
    return {
        "rule": rule,
        "value": value,
        "reached": value >= limit if at_least else value <= limit,
        "what": what,
        "why": "",
    }


def judged(outcomes: Mapping[str, Outcome]) -> list[dict[str, Any]]:
    """All targets: {"rule", "value", "reached", "what", "why"}."""
    sampled = [
        (row["times_the_floor"], row["variant"])
        for case in _cases(outcomes, "sampler")
        for row in case["rows"]
        if row["right"] and row["variant"].startswith("nft one normal, bf16") and "cached" in row["variant"]
    ]
    few = [case for case in _cases(outcomes, "layers") if case["rows_a_chip"] <= MOST_ROWS]

    def layers(against: str) -> list[tuple[float, str]]:
        return [
            (c["ratio"], f"{case['case']}, {c['ours']} / {c['against']}") for case in few for c in _pairs(case, against)
        ]

    def of(stage: str, case_name: str, against: str) -> list[tuple[float, str]]:
        return [
            (c["ratio"], f"{c['ours']} / {c['against']}")
            for case in _cases(outcomes, stage)
            if case["case"] == case_name
            for c in _pairs(case, against)
        ]

    training = outcomes.get("training")
    memory = training.found.get("memory", ()) if training is not None and isinstance(training.found, dict) else ()
    shares = [(m["ours_bytes"] / m["against_bytes"], m["precision"]) for m in memory if m["precision"] == "bf16"]
    return [
        _target("sampler, bf16: at most 1.3 times its floor", [min(sampled)] if sampled else [], 1.3, at_least=False),
        _target(
            f"layers to {MOST_ROWS} rows per chip, bf16: >= 1.3x PyTorch with one normal per weight, the worst",
            layers("one"),
            1.3,
        ),
        _target(
            f"layers to {MOST_ROWS} rows per chip, bf16: >= 3x PyTorch with one normal per device, the worst",
            layers("device"),
            3.0,
        ),
        _target(
            "ResNet-18, 128 images, bf16: >= 2x PyTorch with one normal per weight",
            of("network", "resnet18-128-bf16", "one"),
            2.0,
        ),
        _target(
            "ResNet-18, 128 images, bf16: >= 0.9x the speed without noise",
            of("network", "resnet18-128-bf16", "none"),
            0.9,
        ),
        _target("OVF step, bf16: >= 1.5x PyTorch with one normal per weight", of("training", "ovf-step", "one"), 1.5),
        _target("OVF step, bf16: at most 0.6 times PyTorch's peak memory", shares, 0.6, at_least=False),
    ]
