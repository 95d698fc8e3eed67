"""Tables of means and standard deviations that the kernels read (docs/reference/noise.md)."""

from __future__ import annotations

import math

import numpy as np

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
