"""The device model: how far a programmed conductance lies from its target (design, section 2)."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nft_ext.device import tables
from nft_ext._common.checks import fail, integer, number

PRESETS = {"rram1": 1.0, "fefet2": 2.0, "rram4": 4.0, "fefet6": 6.0}
_PATHS = {"off": 0, "fast": 1, "per_device": 2}
_MAPPINGS = {"sign": 0, "differential": 1}


@dataclasses.dataclass(frozen=True)
class NVMDevice:
    """One kind of non-volatile memory device and the way weights are mapped onto it. Frozen and hashable.

    A weight of M bits sits on M / K devices of K bits. With step s = max|W| / (2^M - 1), code q = rint(|W| / s) and levels
    l_j = (q >> (j K)) & (2^K - 1), device j is programmed to g_j = l_j + dg_j (level units) and
    W_p = sign * s * sum_j g_j 2^(j K)   (Eq. 4 and 5 of arXiv 2305.14561).

    Args:
        weight_bits: M, 1..16.
        device_bits: K, a divisor of M.
        sigma: standard deviation of dg_j; dimensionless, its unit is set by `relative_to`. For measured tables a factor on
            the measured deviations (1.0 = as measured).
        relative_to: "max": dg ~ N(0, (sigma (2^K - 1))^2), relative to one device's maximal conductance (the paper);
            "spacing": dg ~ N(0, sigma^2), relative to the distance of two levels; "own": sd = sigma * l_j, relative to the
            device's own level.
        sampling: "auto" takes one normal a weight where that is exact (Gaussian devices) and one a device elsewhere;
            "fast" and "per_device" insist.
        mapping: "sign": one array in use per weight (the paper); "differential": the idle array of the pair, at level 0, is
            noisy too.
        clip: None, or (low, high) bounds on each conductance in units of the maximal conductance.
        censor: None, or c: right-censored Gaussian, z = min(z, c).
        truncate: None, or c <= 5: Gaussian truncated to |z| <= c (write-verify).
        stuck: (p_off, p_on), probabilities that a device is stuck at level 0 or at level 2^K - 1.
        level_scale: None, or 2^K factors on the standard deviation of each level (presets fill it).
        state_rule: "device": level_scale applies to each device's level; "weight": the published code's reading, K = 2 only:
            its inner factor applies to codes in the middle half of the whole weight.
        level_mean, level_std: None, or 2^K measured means and standard deviations in level units (see `from_table`).
        name: what reports call it.

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
    name: str = "gaussian"

    def __post_init__(self) -> None:
        put = lambda field, value: object.__setattr__(self, field, value)  # noqa: E731  (frozen: the only way to normalise)
        put("weight_bits", integer("weight_bits", self.weight_bits, 1, 16))
        put("device_bits", integer("device_bits", self.device_bits, 1, 16))
        if self.weight_bits % self.device_bits:
            fail("weight_bits", f"must be a multiple of device_bits = {self.device_bits}", self.weight_bits)
        put("sigma", number("sigma", self.sigma, 0.0))
        _one_of("relative_to", self.relative_to, ("max", "spacing", "own"))
        _one_of("sampling", self.sampling, ("auto", "fast", "per_device"))
        _one_of("mapping", self.mapping, tuple(_MAPPINGS))
        _one_of("state_rule", self.state_rule, ("device", "weight"))
        for field in ("level_scale", "level_mean", "level_std"):
            put(field, self._levels(field, low=None if field == "level_mean" else 0.0))
        if (self.level_mean is None) != (self.level_std is None):
            fail("level_std", "must be given together with level_mean", self.level_std)
        if self.level_scale is not None and self.level_std is not None:
            fail("level_scale", "must be left out where level_std gives each level its deviation", self.level_scale)
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
        if self.state_rule == "weight" and (self.level_scale is None or self.device_bits != 2 or not self.gaussian
                                            or self.relative_to == "own"):
            fail("state_rule", 'must be "device" unless a Gaussian preset of two-bit devices is used, relative_to "max" or '
                 '"spacing"', self.state_rule)
        if self.sampling == "fast" and not self.gaussian:
            fail("sampling", 'must be "auto" or "per_device" where devices are not Gaussian (clip, censor, truncate, stuck)', "fast")
        if self.sampling == "per_device" and self.state_rule == "weight":
            fail("sampling", 'must be "auto" or "fast" with state_rule="weight"', "per_device")
        if self.relative_to == "max" and self.level_std is None and self.sigma > 0.4:
            warnings.warn(f"sigma: the paper's range ends at 0.4; got {self.sigma:g}", stacklevel=3)

    def __hash__(self) -> int:
        """Of all fields, found once: tables are looked up by device at every call."""
        try:
            return self.__dict__["_hash"]
        except KeyError:
            found = hash(tuple(getattr(self, f.name) for f in dataclasses.fields(self)))
            object.__setattr__(self, "_hash", found)
            return found

    def __getstate__(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # strings hash differently elsewhere

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

    # ---- constructors

    @classmethod
    def preset(cls, name: str, sigma: float = 0.1, **options: Any) -> NVMDevice:
        """A published two-bit device with level-dependent spread.

        rram1 (s = 1), fefet2 (2), rram4 (4), fefet6 (6): level sigmas [1, s, s, 1] * sigma / sqrt(0.4 s^2 + 0.6), in units of
        the maximal conductance. Sigma is nominal: the rms over trained weights is 0.82 to 0.90 of it.

        Raises:
            ValueError: an unknown name, or device_bits other than 2.
        """
        _one_of("name", name, tuple(PRESETS))
        if options.get("device_bits", 2) != 2:
            fail("device_bits", f"must be 2 for the preset {name}", options["device_bits"])
        s = PRESETS[name]
        norm = math.sqrt(0.4 * s * s + 0.6)
        return cls(sigma=sigma, level_scale=(1 / norm, s / norm, s / norm, 1 / norm), name=name, **options)

    @classmethod
    def from_table(cls, path: str | Path, *, unit: str = "level", g_min: float | None = None, g_max: float | None = None,
                   sigma: float = 1.0, **options: Any) -> NVMDevice:
        """A measured device: a CSV file with the columns level, mean, std (2^K rows, one a level).

        Args:
            path: the file.
            unit: "level" (level units, 0 .. 2^K - 1) or "microsiemens" (then g_min and g_max are the conductances of level 0
                and of the top level).
            sigma: a factor on the measured standard deviations (1.0 = as measured); the means stay as measured.

        Raises:
            FileNotFoundError, ValueError: the file or its content, by line.
        """
        mean, std = tables.read_levels(Path(path), unit, g_min, g_max)
        options.setdefault("device_bits", int(math.log2(len(mean))))
        return cls(sigma=sigma, level_mean=tuple(mean), level_std=tuple(std), name=Path(path).stem, **options)

    @classmethod
    def described(cls, description: Mapping[str, Any]) -> NVMDevice:
        """The device that `describe` described: checkpoints and reports hold such descriptions.

        Args:
            description: fields by name; what is missing has its default.

        Raises:
            TypeError: no mapping. ValueError: a name that is no field, or a field out of its range.
        """
        if not isinstance(description, Mapping):
            fail("description", "must be a mapping, as describe gives it", type(description).__name__, TypeError)
        fields = dict(description)
        known = tuple(f.name for f in dataclasses.fields(cls))
        for name in fields:
            _one_of("description", name, known)
        sampling = fields.pop("sampling", "auto")
        if fields.get("level_std") is not None:
            fields.pop("relative_to", None)
        found = cls(**fields)
        return found if sampling in ("auto", found.path) else found.replace(sampling=sampling)

    def replace(self, **changes: Any) -> NVMDevice:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    # ---- what follows from the fields

    @property
    def levels(self) -> int:
        """Levels of one device, 2^K."""
        return 1 << self.device_bits

    @property
    def devices(self) -> int:
        """Devices a weight, M / K."""
        return self.weight_bits // self.device_bits

    @property
    def gaussian(self) -> bool:
        """Whether every device's error is Gaussian, so that one normal a weight is exact."""
        return self.clip is None and self.censor is None and self.truncate is None and self.stuck == (0.0, 0.0)

    @property
    def path(self) -> str:
        """The sampler that serves this device: "fast" (one normal a weight) or "per_device"."""
        return "fast" if self.gaussian and self.sampling != "per_device" else "per_device"

    def level_table(self) -> tuple[np.ndarray, np.ndarray]:
        """(mean [2^K], sd [2^K]) of one device's conductance in level units, float64."""
        return tables.level_table(self)

    def tables(self) -> tuple[np.ndarray, np.ndarray]:
        """(mean [2^M], std [2^M]) of a programmed weight given its code, in units of the step, float32.

        mean[q] = q + sum_j 2^(jK) mu(l_j), std[q] = sqrt(sum_j 4^(jK) sd(l_j)^2).

        Raises:
            ValueError: the device is not Gaussian, so two moments do not describe it.
        """
        if not self.gaussian:
            fail("tables", "exist for Gaussian devices only (no clip, censor, truncate or stuck)", str(self))
        return tables.weight_table(self)

    def operator_table(self) -> np.ndarray:
        """The flat float32 table of the compiled operators, see csrc/core/conductance.h."""
        return tables.operator_table(self)

    def operator_spec(self, enabled: bool = True) -> list[int]:
        """[weight_bits, device_bits, path, mapping] of the compiled operators."""
        return [self.weight_bits, self.device_bits, _PATHS[self.path if enabled else "off"], _MAPPINGS[self.mapping]]

    def describe(self) -> dict[str, Any]:
        """Every field that differs from the default, and those a report must name; JSON-able."""
        named = ("name", "weight_bits", "device_bits", "sigma", "relative_to", "mapping")
        out = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)
               if f.name in named or getattr(self, f.name) != f.default}
        out["sampling"] = self.path
        if self.level_std is not None:
            out["relative_to"] = "measured standard deviation"
        return {k: list(v) if isinstance(v, tuple) else v for k, v in out.items()}

    def __str__(self) -> str:
        d = self.describe()
        extra = "".join(f", {k} {d[k]}" for k in ("clip", "censor", "truncate", "stuck") if k in d)
        return (f"{self.name}: sigma {self.sigma:g} relative to {d['relative_to']}, M {self.weight_bits}, K {self.device_bits}, "
                f"{self.mapping} mapping{extra}")


def _one_of(argument: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        fail(argument, f"must be one of {', '.join(allowed)}", value)


def _pair(argument: str, value: Any) -> tuple[float, float]:
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        fail(argument, "must be two numbers", value)
    return number(f"{argument}[0]", value[0]), number(f"{argument}[1]", value[1])
