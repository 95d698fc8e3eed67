"""The device model: the distribution of programmed conductances (docs/reference/noise.md)."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nft_ext._common.checks import fail, file_path, integer, number, one_of
from nft_ext.device import tables
from nft_ext.device.fields import MAPPINGS, SCALES, DeviceFields
from nft_ext.device.measured import read_levels

PRESETS = {"rram1": 1.0, "fefet2": 2.0, "rram4": 4.0, "fefet6": 6.0}
_ARRAYS = ("scale", "array_rows", "array_columns", "input_bits", "output_bits", "input_range")
_PATHS = {"off": 0, "fast": 1, "per_device": 2}
# How a stored weight lies: i inputs, o outputs, e experts. (dimension of the outputs, number of groups; 0: dimension 0)
LAYOUTS = {"oi": (0, 1), "io": (1, 1), "eoi": (1, 0), "eio": (2, 0)}


class NVMDevice(DeviceFields):
    """A kind of non-volatile memory device, and the mapping of weights onto it. Frozen and hashable.

    A weight of M bits sits on M / K devices of K bits. With step s = max|W| / (2^M - 1), code q = rint(|W| / s) and
    levels l_j = (q >> (j K)) & (2^K - 1), device j is programmed to g_j = l_j + dg_j (level units) and
    W_p = sign * s * sum_j g_j 2^(j K)   (Eq. 4 and 5 of arXiv 2305.14561).

    Args:
        weight_bits: M, 1..16.
        device_bits: K, a divisor of M.
        sigma: standard deviation of dg_j, dimensionless; `relative_to` sets its unit. For measured tables it is a
            factor on the measured deviations (1.0 = as measured).
        relative_to: "max": dg ~ N(0, (sigma (2^K - 1))^2), relative to one device's maximal conductance (the paper);
            "spacing": dg ~ N(0, sigma^2), relative to the distance of two levels; "own": sd = sigma * l_j, relative to
            the device's own level.
        sampling: "auto": one normal per weight if that is exact (Gaussian devices), else one per device. "fast" and
            "per_device" force one of the two.
        mapping: "sign": each weight uses one array (the paper). "differential": the other array of the pair, at level
            0, adds its noise.
        clip: None, or (low, high) bounds on each conductance in units of the maximal conductance.
        censor: None, or c: right-censored Gaussian, z = min(z, c).
        truncate: None, or c <= 5: Gaussian truncated to |z| <= c (write-verify).
        stuck: (p_off, p_on), probabilities that a device is stuck at level 0 or at level 2^K - 1.
        level_scale: None, or 2^K factors on the standard deviation of each level (presets fill it).
        state_rule: "device": level_scale applies to each device's level. "weight" (the published code, K = 2 only): the
            inner factor applies to codes in the middle half of the weight's range.
        scale: which weights share a step s = max|W| / (2^M - 1). "layer": all weights of a layer (the paper).
            "output": the weights of one output. "tile": the weights of one output on one array; needs array_rows.
        array_rows: None, or the number of inputs (word lines) per array, R. Tile t of an output holds its inputs
            t R .. t R + R - 1.
        array_columns: None, or the number of outputs (bit lines) per array. It does not change the noise.
        input_bits: None for ideal inputs, or the bits of the DAC that converts each input of a layer, 2..16.
        output_bits: None for ideal sums, or the bits of the ADC that converts each tile's sum, 2..16. The converted
            sums of an output's tiles are then added digitally. docs/reference/noise.md has the equations.
        input_range: "static": one range of the DAC per layer, found by `nft_ext.calibrate`. "dynamic": the largest
            magnitude of each example, which is an input vector of Linear or an image of Conv2d.
        level_mean, level_std: None, or 2^K measured means and standard deviations in level units (see `from_table`).
        name: the name in reports.

    Raises:
        ValueError: a field out of its range, or fields that exclude each other.
    """

    # ---- constructors

    @classmethod
    def preset(cls, name: str, sigma: float = 0.1, **options: Any) -> NVMDevice:
        """A published two-bit device with level-dependent spread.

        Level sigmas are [1, s, s, 1] * sigma / sqrt(0.4 s^2 + 0.6), in units of the maximal conductance. Sigma is
        nominal: the rms over trained weights is 0.82 to 0.90 of it.

        Args:
            name: rram1 (s = 1), fefet2 (s = 2), rram4 (s = 4) or fefet6 (s = 6).
            sigma: nominal sigma.
            options: other fields of `NVMDevice`.

        Raises:
            ValueError: an unknown name, or device_bits other than 2.
        """
        one_of("name", name, PRESETS)
        if options.get("device_bits", 2) != 2:
            fail("device_bits", f"must be 2 for the preset {name}", options["device_bits"])
        s = PRESETS[name]
        norm = math.sqrt(0.4 * s * s + 0.6)
        return cls(sigma=sigma, level_scale=(1 / norm, s / norm, s / norm, 1 / norm), name=name, **options)

    @classmethod
    def from_table(
        cls,
        path: str | Path,
        *,
        unit: str = "level",
        g_min: float | None = None,
        g_max: float | None = None,
        sigma: float = 1.0,
        **options: Any,
    ) -> NVMDevice:
        """A measured device, from a CSV file with the columns level, mean, std and one row per level.

        docs/guide/devices.md lists the forms that are read. A form with several meanings is refused.

        Args:
            path: the file.
            unit: "level" (0 .. 2^K - 1) or "microsiemens".
            g_min: conductance of level 0, with unit "microsiemens" only.
            g_max: conductance of the top level, with unit "microsiemens" only.
            sigma: a factor on the measured standard deviations (1.0 = as measured). The means stay as measured.
            options: other fields of `NVMDevice`. device_bits=K says that the table has 2^K levels. It is required for a
                table without a final line break, which may be cut. Without it a table of two levels gives a warning.

        Raises:
            FileNotFoundError: no such file.
            TypeError: path is no path.
            ValueError: bad content, and the message has the line; or a bad option.
        """
        file, sigma = file_path("path", path), number("sigma", sigma, 0.0)
        if "relative_to" in options:
            fail("relative_to", "must be left out, because the table sets the deviations", options["relative_to"])
        mean, std, ends = read_levels(file, unit, g_min, g_max)
        if "device_bits" not in options and not ends:
            rule = "must end with a line break: the file may be cut; if it is whole, say so by device_bits"
            fail(str(file), rule, f"{len(mean)} levels")
        if "device_bits" not in options and len(mean) == 2:
            warnings.warn(f"{file}: read as a one-bit device; if it is not cut, say so by device_bits=1", stacklevel=2)
        found = {"device_bits": int(math.log2(len(mean))), "name": file.stem} | options
        return cls(sigma=sigma, level_mean=tuple(mean), level_std=tuple(std), **found)

    @classmethod
    def described(cls, description: Mapping[str, Any]) -> NVMDevice:
        """The device of a description made by `describe`, as checkpoints and reports hold it.

        Args:
            description: fields by name. Missing fields have their defaults.

        Raises:
            TypeError: not a mapping.
            ValueError: an unknown field, or a field out of its range.
        """
        if not isinstance(description, Mapping):
            fail("description", "must be a mapping, as `describe` returns it", type(description).__name__, TypeError)
        fields = dict(description)
        known = tuple(f.name for f in dataclasses.fields(cls))
        for name in fields:
            one_of("description", name, known)
        sampling = fields.pop("sampling", "auto")
        if fields.get("level_std") is not None:
            fields.pop("relative_to", None)
        found = cls(**fields)
        return found if sampling in ("auto", found.path) else found.replace(sampling=sampling)

    def replace(self, **changes: Any) -> NVMDevice:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    # ---- tables and descriptions

    def level_table(self) -> tuple[np.ndarray, np.ndarray]:
        """(mean [2^K], sd [2^K]) of one device's conductance in level units, float64."""
        return tables.level_table(self)

    def tables(self) -> tuple[np.ndarray, np.ndarray]:
        """(mean [2^M], std [2^M]) of a programmed weight per code, in units of the step, float32.

        mean[q] = q + sum_j 2^(jK) mu(l_j), std[q] = sqrt(sum_j 4^(jK) sd(l_j)^2).

        Raises:
            ValueError: the device is not Gaussian.
        """
        if not self.gaussian:
            fail("tables", "exist for Gaussian devices only (no clip, censor, truncate or stuck)", str(self))
        return tables.weight_table(self)

    def operator_table(self) -> np.ndarray:
        """The flat float32 table for the operators (layout: csrc/core/conductance.h)."""
        return tables.operator_table(self)

    def operator_spec(self, enabled: bool = True, layout: str = "oi", groups: int = 1) -> list[int]:
        """[weight_bits, device_bits, path, mapping, *scaling], an argument of the operators.

        Args:
            enabled: False for the quantized weight W_d.
            layout: how the weight is stored, see `operator_scaling`.
            groups: see `operator_scaling`.

        Raises:
            ValueError: a bad argument.
        """
        return [
            self.weight_bits,
            self.device_bits,
            _PATHS[self.path if enabled else "off"],
            MAPPINGS.index(self.mapping),
            *self.operator_scaling(layout, groups),
        ]

    def operator_scaling(self, layout: str = "oi", groups: int = 1) -> list[int]:
        """[sharing, tile_rows, output_dim, groups]: which weights share a step (csrc/operators/schemas.cpp).

        Args:
            layout: how the weight is stored, outer dimension first. "oi": [out, in, ...] (Linear, Conv); "io":
                [in, out, ...] (transformers' Conv1D, transposed convolutions); "eoi" and "eio": the same per expert.
                An expert is a crossbar of its own, with its own step if scale="layer".
            groups: of a transposed convolution, layout "io": dimension 0 holds the inputs of one group after another.

        Raises:
            ValueError: an unknown layout; groups below 1, or other than 1 with another layout than "io".
        """
        one_of("layout", layout, tuple(LAYOUTS))
        output_dim, crossbars = LAYOUTS[layout]
        integer("groups", groups, 1)
        if groups != 1 and layout != "io":
            fail("groups", 'must be 1 unless layout is "io"', groups)
        experts = crossbars == 0
        sharing = SCALES.index(self.scale)
        if sharing == 0 and not experts:
            return [0, 0, 0, 1]
        tile_rows = self.array_rows if self.scale == "tile" and self.array_rows is not None else 0
        # sharing: 0 all, 1 a group, 2 an output, 3 a tile
        return [sharing + 1 if sharing else 1, tile_rows, output_dim, crossbars if experts else groups]

    def describe(self) -> dict[str, Any]:
        """Fields that differ from their defaults, and those that reports always name, as JSON types."""
        named = ("name", "weight_bits", "device_bits", "sigma", "relative_to", "mapping")
        out = {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(self)
            if f.name in named or getattr(self, f.name) != f.default
        }
        out["sampling"] = self.path
        if self.level_std is not None:
            out["relative_to"] = "measured standard deviation"
        return {k: list(v) if isinstance(v, tuple) else v for k, v in out.items()}

    def __str__(self) -> str:
        d = self.describe()
        extra = "".join(f", {k} {d[k]}" for k in ("clip", "censor", "truncate", "stuck") if k in d)
        extra += "".join(f", {k} {d[k]}" for k in _ARRAYS if k in d)
        return (
            f"{self.name}: sigma {self.sigma:g} relative to {d['relative_to']}, M {self.weight_bits}, "
            f"K {self.device_bits}, {self.mapping} mapping{extra}"
        )
