"""The checked fields of a device model (docs/reference/noise.md)."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import numpy as np

from nft_ext._common.checks import fail, integer, number, one_of, text

MAPPINGS = ("sign", "differential")
SCALES = ("layer", "output", "tile")
INPUT_RANGES = ("static", "dynamic")
CONVERTER_BITS = 2, 16  # one signed bit has no level but zero; above 16 bits float32 sums are coarser than the levels
_MOST_ROWS = 2**30


@dataclasses.dataclass(frozen=True)
class DeviceFields:
    """The fields of `NVMDevice`, which documents them. Frozen, hashable and checked.

    Raises:
        ValueError: names the argument, the rule and the value.
    """

    weight_bits: int = 8
    device_bits: int = 2
    sigma: float = 0.1
    relative_to: str = "max"
    sampling: str = "auto"
    mapping: str = "sign"
    clip: tuple[float, float] | None = None
    censor: float | None = None
    truncate: float | None = None
    stuck: tuple[float, float] = (0.0, 0.0)
    level_scale: tuple[float, ...] | None = None
    state_rule: str = "device"
    level_mean: tuple[float, ...] | None = None
    level_std: tuple[float, ...] | None = None
    scale: str = "layer"
    array_rows: int | None = None
    array_columns: int | None = None
    input_bits: int | None = None
    output_bits: int | None = None
    input_range: str = "static"
    name: str = "gaussian"

    def __post_init__(self) -> None:
        def put(field: str, value: Any) -> None:
            object.__setattr__(self, field, value)  # the dataclass is frozen

        put("weight_bits", integer("weight_bits", self.weight_bits, 1, 16))
        put("device_bits", integer("device_bits", self.device_bits, 1, 16))
        if self.weight_bits % self.device_bits:
            fail("weight_bits", f"must be a multiple of device_bits = {self.device_bits}", self.weight_bits)
        put("sigma", number("sigma", self.sigma, 0.0))
        text("name", self.name)
        one_of("relative_to", self.relative_to, ("max", "spacing", "own"))
        one_of("sampling", self.sampling, ("auto", "fast", "per_device"))
        one_of("mapping", self.mapping, MAPPINGS)
        one_of("state_rule", self.state_rule, ("device", "weight"))
        one_of("scale", self.scale, SCALES)
        for field in ("array_rows", "array_columns"):
            if getattr(self, field) is not None:
                put(field, integer(field, getattr(self, field), 1, _MOST_ROWS))
        if self.scale == "tile" and self.array_rows is None:
            fail("array_rows", 'must be given with scale="tile": a tile is the array\'s rows of one output', None)
        for field in ("input_bits", "output_bits"):
            if getattr(self, field) is not None:
                put(field, integer(field, getattr(self, field), *CONVERTER_BITS))
        one_of("input_range", self.input_range, INPUT_RANGES)
        if self.input_range == "dynamic" and self.input_bits is None:
            fail("input_range", 'must be "static" without input_bits, because no input is converted', "dynamic")
        for field in ("level_scale", "level_mean", "level_std"):
            put(field, self._levels(field, low=None if field == "level_mean" else 0.0))
        if (self.level_mean is None) != (self.level_std is None):
            fail("level_std", "must be given together with level_mean", self.level_std)
        if self.level_scale is not None and self.level_std is not None:
            fail("level_scale", "must be left out if level_std is given", self.level_scale)
        if self.clip is not None:
            low, high = _pair("clip", self.clip)
            if low >= high:
                fail("clip", "must be (low, high) with low < high", self.clip)
            put("clip", (low, high))
        if self.censor is not None:
            put("censor", number("censor", self.censor))
        if self.truncate is not None:
            put("truncate", number("truncate", self.truncate, 0.01, 5.0))
        off, on = _pair("stuck", self.stuck)
        if off < 0 or on < 0 or off + on > 1:
            fail("stuck", "must be two probabilities with p_off + p_on <= 1", self.stuck)
        put("stuck", (off, on))
        if self.censor is not None and self.truncate is not None:
            fail("truncate", "cannot be combined with censor", self.truncate)
        if self.state_rule == "weight" and (
            self.level_scale is None or self.device_bits != 2 or not self.gaussian or self.relative_to == "own"
        ):
            fail(
                "state_rule",
                'must be "device", except for a Gaussian two-bit preset with relative_to "max" or "spacing"',
                self.state_rule,
            )
        if self.sampling == "fast" and not self.gaussian:
            fail(
                "sampling",
                'must be "auto" or "per_device" with clip, censor, truncate or stuck',
                "fast",
            )
        if self.sampling == "per_device" and self.state_rule == "weight":
            fail("sampling", 'must be "auto" or "fast" with state_rule="weight"', "per_device")
        if self.relative_to == "max" and self.level_std is None and self.sigma > 0.4:
            warnings.warn(f"sigma: the paper's range ends at 0.4; got {self.sigma:g}", stacklevel=3)

    def __hash__(self) -> int:
        """Hash of all fields, computed once: every call looks up a table by its device."""
        try:
            return self.__dict__["_hash"]
        except KeyError:
            found = hash(tuple(getattr(self, f.name) for f in dataclasses.fields(self)))
            object.__setattr__(self, "_hash", found)
            return found

    def __getstate__(self) -> dict[str, Any]:
        # Without the hash, which differs between processes.
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    def _levels(self, field: str, low: float | None) -> tuple[float, ...] | None:
        values = getattr(self, field)
        if values is None:
            return None
        if not isinstance(values, (tuple, list, np.ndarray)):
            fail(field, f"must be 2^device_bits = {self.levels} numbers", values)
        values = tuple(number(f"{field}[{i}]", v, low) for i, v in enumerate(values))
        if len(values) != self.levels:
            fail(field, f"must have 2^device_bits = {self.levels} entries", len(values))
        return values

    # ---- derived numbers

    @property
    def levels(self) -> int:
        """Levels per device, 2^K."""
        return 1 << self.device_bits

    @property
    def devices(self) -> int:
        """Devices per weight, M / K."""
        return self.weight_bits // self.device_bits

    @property
    def gaussian(self) -> bool:
        """Whether every device's error is Gaussian. One normal per weight is then exact."""
        return self.clip is None and self.censor is None and self.truncate is None and self.stuck == (0.0, 0.0)

    @property
    def has_converters(self) -> bool:
        """Whether inputs or outputs of arrays are converted: input_bits or output_bits is given."""
        return self.input_bits is not None or self.output_bits is not None

    @property
    def path(self) -> str:
        """The sampler for this device: "fast" (one normal per weight) or "per_device"."""
        return "fast" if self.gaussian and self.sampling != "per_device" else "per_device"


def _pair(argument: str, value: Any) -> tuple[float, float]:
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        fail(argument, "must be two numbers", value)
    return number(f"{argument}[0]", value[0]), number(f"{argument}[1]", value[1])
