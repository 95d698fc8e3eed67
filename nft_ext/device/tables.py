"""Tables of means and standard deviations that the kernels read (docs/reference/noise.md)."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np

from nft_ext._common.checks import fail, one_of
from nft_ext.device.fields import DeviceFields


def level_table(nvm: DeviceFields) -> tuple[np.ndarray, np.ndarray]:
    """(mean [2^K], sd [2^K]) of one device, in level units, float64."""
    level = np.arange(nvm.levels, dtype=np.float64)
    if nvm.level_std is not None:
        return np.asarray(nvm.level_mean, np.float64), nvm.sigma * np.asarray(nvm.level_std, np.float64)
    top = nvm.levels - 1
    sd = {
        "max": np.full(nvm.levels, nvm.sigma * top),
        "spacing": np.full(nvm.levels, nvm.sigma),
        "own": nvm.sigma * level,
    }
    scale = np.ones(nvm.levels) if nvm.level_scale is None else np.asarray(nvm.level_scale, np.float64)
    return level, sd[nvm.relative_to] * scale


def weight_table(nvm: DeviceFields) -> tuple[np.ndarray, np.ndarray]:
    """(mean [2^M], std [2^M]) of a programmed weight per code, in steps, float32. Gaussian devices only."""
    device_mean, device_sd = level_table(nvm)
    code = np.arange(1 << nvm.weight_bits)
    mean = code.astype(np.float64)
    variance = np.zeros(len(code))
    for j in range(nvm.devices):
        level = (code >> (j * nvm.device_bits)) & (nvm.levels - 1)
        place = float(1 << (j * nvm.device_bits))
        # Add the device's offset, not its mean: a device without offset keeps mean[q] == q exactly.
        mean += place * (device_mean - np.arange(nvm.levels))[level]
        variance += place**2 * device_sd[level] ** 2
        if nvm.mapping == "differential":
            mean -= place * device_mean[0]
            variance += place**2 * device_sd[0] ** 2
    if nvm.state_rule == "weight" and nvm.level_scale is not None:
        base = math.sqrt(sum(4.0 ** (j * nvm.device_bits) for j in range(nvm.devices))) * nvm.sigma
        base *= nvm.levels - 1 if nvm.relative_to == "max" else 1
        quarter = len(code) // 4
        inner = (code >= quarter) & (code < 3 * quarter)
        variance = (base * np.where(inner, nvm.level_scale[1], nvm.level_scale[0])) ** 2
        if nvm.mapping == "differential":
            variance = variance + (base * nvm.level_scale[0]) ** 2
    return mean.astype(np.float32), np.sqrt(variance).astype(np.float32)


def operator_table(nvm: DeviceFields) -> np.ndarray:
    """The kernels' flat float32 table: [mean, std] (fast path) or [mean, sd, six limits] (per device)."""
    if nvm.path == "fast":
        return np.concatenate(weight_table(nvm))
    mean, sd = level_table(nvm)
    top = nvm.levels - 1
    low, high = nvm.clip if nvm.clip is not None else (-math.inf, math.inf)
    limits = [
        math.inf if nvm.censor is None else nvm.censor,
        low * top,
        high * top,
        nvm.stuck[0],
        nvm.stuck[0] + nvm.stuck[1],
        0.0 if nvm.truncate is None else 0.5 * math.erf(nvm.truncate / math.sqrt(2)),
    ]
    return np.concatenate([mean, sd, limits]).astype(np.float32)


def read_levels(path: Path, unit: str, g_min: float | None, g_max: float | None) -> tuple[list[float], list[float]]:
    """Means and standard deviations in level units from a CSV file with the columns level, mean, std.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not UTF-8, a missing column, a bad number, a negative std, levels other than 0 .. 2^K - 1, or means
            that fit another unit.
    """
    one_of("unit", unit, ("level", "microsiemens"))
    if unit == "microsiemens" and (g_min is None or g_max is None or not g_min < g_max):
        fail("g_min, g_max", "must be given with g_min < g_max if unit is microsiemens", (g_min, g_max))
    if unit == "level" and (g_min, g_max) != (None, None):
        fail("g_min, g_max", "must be left out if unit is level", (g_min, g_max))
    if not path.is_file():
        fail("path", "must be a CSV file with the columns level, mean, std", str(path), FileNotFoundError)
    try:
        text = path.read_text(encoding="utf-8-sig")  # spreadsheets write a byte order mark
    except UnicodeDecodeError:
        fail(str(path), "must be a CSV file in UTF-8", "bytes that are not text")
    reader = csv.DictReader(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    missing = {"level", "mean", "std"} - {(f or "").strip() for f in reader.fieldnames or ()}
    if missing:
        fail(
            str(path),
            f"must have the columns level, mean, std; missing {', '.join(sorted(missing))}",
            str(reader.fieldnames),
        )
    rows: dict[int, tuple[float, float]] = {}
    for number, row in enumerate(reader, start=1):
        try:
            row = {(k or "").strip(): v for k, v in row.items()}
            level, mean, std = int(row["level"]), float(row["mean"]), float(row["std"])
        except (TypeError, ValueError):
            fail(f"{path}, row {number}", "must hold an integer level and two numbers", str(row))
        if not (math.isfinite(mean) and math.isfinite(std) and std >= 0):
            fail(f"{path}, row {number}", "must hold a finite mean and a finite std >= 0", str(row))
        if level in rows:
            fail(f"{path}, row {number}", "must name each level once", level)
        rows[level] = (mean, std)
    count = len(rows)
    if count < 2 or count & (count - 1) or sorted(rows) != list(range(count)):
        fail(str(path), "must list the levels 0 .. 2^K - 1, K >= 1", str(sorted(rows)))
    mean, std = (list(v) for v in zip(*(rows[level] for level in range(count))))
    if g_min is not None and g_max is not None:
        per_level = (g_max - g_min) / (count - 1)
        mean, std = [(m - g_min) / per_level for m in mean], [s / per_level for s in std]
    _check_unit(path, mean, unit, g_min, g_max)
    return mean, std


def _check_unit(path: Path, mean: list[float], unit: str, g_min: float | None, g_max: float | None) -> None:
    """Refuses means outside the range of the levels: they have another unit or other bounds."""
    top = len(mean) - 1
    if all(-1 < m < top + 1 for m in mean) and mean[0] < top / 2 < mean[-1]:
        return
    found = ", ".join(f"{m:.4g}" for m in mean)
    if unit == "level":
        fail(
            str(path),
            f'must have means in level units, near 0 .. {top} (conductances need unit="microsiemens")',
            found,
        )
    fail(
        "g_min, g_max",
        f"must be the conductances of level 0 and level {top}, so that the means are near 0 .. {top} level units",
        f"{g_min:g}, {g_max:g} and so {found}",
    )
