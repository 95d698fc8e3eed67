"""The floor of a measured call: the least time that its bytes and operations take on this GPU.

The stage `ceilings` measures bytes per second of a large copy and operations per second of a large product. The issue
rate of instructions is computed: multiprocessors x 128 lanes x the highest clock.
"""

from __future__ import annotations

import dataclasses
from typing import Any

LANES = 128  # per multiprocessor: four schedulers of 32, for compute capabilities 8.0 and 9.0
# One weight with one normal of its own. A Philox call (10 rounds of two wide products, four exclusive ors, two key
# steps) for four weights: 20; half a Box-Muller pair (logarithm, square root, sine and cosine, 70 together): 35; code,
# table, sign, scale, address and store: 5. With one normal per device, the first two for each of the M / K devices.
NORMAL_INSTRUCTIONS, WEIGHT_INSTRUCTIONS = 55, 5


@dataclasses.dataclass(frozen=True)
class Ceilings:
    """Rates of the GPU: bytes/s of a copy (read + written), FLOP/s by precision, instructions/s of all lanes.

    instructions_per_second is None if the clock is unknown.
    """

    bytes_per_second: float
    flops_per_second: dict[str, float]
    instructions_per_second: float | None = None

    @classmethod
    def of(cls, found: dict[str, Any]) -> Ceilings:
        """From the results of the stage `ceilings`."""
        return cls(
            found["copy_bytes_per_second"], dict(found["flops_per_second"]), found.get("instructions_per_second")
        )


@dataclasses.dataclass(frozen=True)
class Floor:
    """Least seconds, by cause."""

    bytes: float
    operations: float
    instructions: float

    @property
    def seconds(self) -> float:
        return max(self.bytes, self.operations, self.instructions)

    @property
    def bound_by(self) -> str:
        return max(("bytes", "operations", "instructions"), key=lambda name: getattr(self, name))


def issue_rate(multiprocessors: int, clock_hz: float | None) -> float | None:
    """Lane instructions per second of the whole GPU; None if the clock is unknown."""
    return None if not clock_hz else multiprocessors * LANES * clock_hz


def sampling_instructions(weights: int, normals: int) -> float:
    """Counted instructions for programming `weights` weights with `normals` normals in total."""
    return float(WEIGHT_INSTRUCTIONS * weights + NORMAL_INSTRUCTIONS * normals)


def floor(
    ceilings: Ceilings, *, bytes_: float, flops: float = 0.0, precision: str = "bf16", instructions: float = 0.0
) -> Floor:
    """The floor of a call that moves `bytes_` (each input read once, each result written once) and does `flops`."""
    issue = ceilings.instructions_per_second
    return Floor(
        bytes_ / ceilings.bytes_per_second,
        flops / ceilings.flops_per_second[precision] if flops else 0.0,
        instructions / issue if issue else 0.0,
    )
