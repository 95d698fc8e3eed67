"""Cases of benchmarks, their variants and targets."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

DRAWS = {
    "none": "noise-free",
    "one": "one normal",
    "device": "one per device",
}  # normals per weight: 0, 1, M / K


class Ready(NamedTuple):
    """A variant, ready to run: built, compiled, with its data."""

    run: Callable[[], Any]  # one call; this is timed
    check: Callable[[], str | None]  # None if the results are right, else the error


@dataclasses.dataclass(frozen=True)
class Work:
    """The work of one call, for all variants: the numerator of the rates."""

    flops: float = 0.0  # of the products, a multiply-add counts 2
    normals: int = 0  # normal numbers that enter the result
    bytes: float = 0.0  # operands and results once each, without intermediates


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way to do a case's work."""

    family: str  # "nft" or "torch"
    draws: str  # a key of DRAWS
    make: Callable[[], Ready]
    work: Work
    precision: str = "fp32"  # "fp32" or "bf16" (autocast)
    mode: str = "eager"  # "eager", "compile", "threads"; on CUDA also "graph", "compiled graph"
    cached: bool = False  # abs-max and codes kept from an earlier call
    note: str = ""  # distinguishes variants that are equal otherwise

    @property
    def name(self) -> str:
        parts = [f"{self.family} {DRAWS[self.draws]}", self.precision]
        parts += [self.mode] if self.mode != "eager" else []
        parts += ["cached"] if self.cached else []
        return ", ".join(parts + ([self.note] if self.note else []))

    def matches(self, wanted: dict[str, Any]) -> bool:
        """Whether every attribute has the wanted value, or one of a tuple of values."""
        return all(getattr(self, k) in (v if isinstance(v, tuple) else (v,)) for k, v in wanted.items())


@dataclasses.dataclass(frozen=True)
class Case:
    """Variants that do the same work and are timed alternately."""

    name: str
    shape: str
    variants: tuple[Variant, ...]
    rounds: int = 15
    unit: str = "GFLOP/s"  # or "ns/normal": the rate its table shows
    alike: tuple[str, ...] = ("precision",)  # a row is compared with PyTorch variants equal in these


@dataclasses.dataclass(frozen=True)
class Target:
    """A ratio to reach: fastest time of `against` over fastest time of `ours`."""

    case: str
    rule: str
    ours: dict[str, Any]
    against: dict[str, Any]
    at_least: float
