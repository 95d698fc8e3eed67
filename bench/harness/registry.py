"""All cases and targets, in their order."""

from __future__ import annotations

import fnmatch

from bench.cpu import layers, networks, sampler
from bench.harness.case import Case, Target

_EITHER = {"mode": ("eager", "compile")}
_ONE = {"family": "torch", "draws": "one"} | _EITHER
_DEVICE = {"family": "torch", "draws": "device"} | _EITHER
_OURS = {"family": "nft", "draws": "one", "precision": "fp32"}
_FRESH, _NEW = {"cached": False, "note": ""}, {"cached": False, "note": sampler.NEW}

# Ours is the exact one-normal path in float32. For Gaussian devices one normal per device has the same distribution (a
# test compares them). Hence both PyTorch versions are compared.
TARGETS = (
    Target("sampler", "quantize and sample, one normal per weight", _OURS | _FRESH, _ONE | {"cached": False}, 7.0),
    Target("sampler", "quantize and sample, one normal per device", _OURS | _FRESH, _DEVICE | {"cached": False}, 20.0),
    # Here earlier calls do not help: PyTorch caches nothing either.
    Target("sampler", "weights new at each call, one normal per weight", _OURS | _NEW, _ONE | {"cached": False}, 7.0),
    Target(
        "sampler", "weights new at each call, one normal per device", _OURS | _NEW, _DEVICE | {"cached": False}, 20.0
    ),
    # The fastest PyTorch among fp32 and bf16, eager and compiled, kept and fresh codes.
    Target("resnet18-1", "1 image, one normal per weight", _OURS, _ONE, 4.0),
    Target("resnet18-1", "1 image, one normal per device", _OURS, _DEVICE, 10.0),
    Target("resnet18-128", "128 images in fp32, never slower", _OURS, _ONE | {"precision": "fp32"}, 1.0),
)

REPORTS = ("limits",)  # bench/cpu/limits.py: the distance to the machine's limits, no comparison


def cases() -> list[Case]:
    return [sampler.case(), *layers.cases(), *networks.cases()]


def select(pattern: str | None) -> tuple[list[Case], list[str]]:
    """Cases and reports whose names equal, contain or match `pattern` (a glob); commas separate several patterns.

    Raises:
        ValueError: nothing matches.
    """
    everything = cases()
    patterns = [p.strip() for p in pattern.split(",")] if pattern else [""]

    names = [c.name for c in everything] + list(REPORTS)

    def wanted(name: str) -> bool:
        return any(name == p if p in names else p in name or fnmatch.fnmatchcase(name, p) for p in patterns)

    found = [c for c in everything if wanted(c.name)], [r for r in REPORTS if wanted(r)]
    if not any(found):
        raise ValueError(f"--only: must match one of {', '.join(names)}; got {pattern}")
    return found
