"""The devices of an evaluation in words."""

from __future__ import annotations

from typing import Any

CONVENTIONS = {
    "max": "of the maximal conductance",
    "spacing": "of the level spacing",
    "own": "of the device's own level",
    "measured standard deviation": "times the measured standard deviation",
}
NON_GAUSSIAN = ("clip", "censor", "truncate", "stuck")


def conditions_of(nvm: list[dict[str, Any]]) -> str:
    """Device, sigma with its unit, M and K. One part per distinct device; `nvm` as a report has it."""
    parts = []
    for group in nvm:
        device = group["device"]
        convention = device["relative_to"]
        text = f"{device['name']}, sigma = {device['sigma']:g} {CONVENTIONS[convention]}"
        text += f", M = {device['weight_bits']}, K = {device['device_bits']}"
        if device.get("mapping", "sign") != "sign":
            text += f", {device['mapping']} mapping"
        text += "".join(f", {key} {device[key]}" for key in NON_GAUSSIAN if key in device)
        parts.append(text if len(nvm) == 1 else f"{text} ({len(group['layers'])} layers)")
    return "; ".join(parts)


def sigma_of(nvm: list[dict[str, Any]]) -> float | list[float]:
    """The sigma used; a sorted list of distinct values if layers differ."""
    values = sorted({group["device"]["sigma"] for group in nvm})
    return values[0] if len(values) == 1 else values
