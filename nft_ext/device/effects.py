"""The effects of a device model, each of which can be switched off alone: for questions about what costs accuracy.

Switching off changes fields of the device only. Codes, steps, streams and normals stay, so chips with and without an
effect are paired.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from nft_ext.device.model import NVMDevice

# Fields of `NVMDevice` that are no effect: the mapping of weights onto devices and arrays, units, names, the sampler.
# Converters stay on in every comparison.
NO_EFFECTS = (
    *("weight_bits", "device_bits", "relative_to", "sampling", "name", "scale", "array_rows", "array_columns"),
    *("input_bits", "output_bits", "input_range"),
)


@dataclass(frozen=True)
class Effect:
    """One effect of a device model.

    Attributes:
        name: its name in tables.
        fields: the fields of `NVMDevice` that describe it.
        present: whether a device has it.
        removed: the device without it.
        text: its numbers in words.
    """

    name: str
    fields: tuple[str, ...]
    present: Callable[[NVMDevice], bool]
    removed: Callable[[NVMDevice], NVMDevice]
    text: Callable[[NVMDevice], str]


def _spread(nvm: NVMDevice) -> np.ndarray:
    return nvm.level_table()[1]


def _is_uneven(nvm: NVMDevice) -> bool:
    spread = _spread(nvm)
    return bool((spread != spread[0]).any())


def _evened(nvm: NVMDevice) -> NVMDevice:
    """The same deviation at every level, with the same mean square over levels."""
    if nvm.level_std is not None:
        return nvm.replace(level_std=(_root_mean_square(nvm.level_std),) * nvm.levels)
    scale = np.ones(nvm.levels) if nvm.level_scale is None else np.asarray(nvm.level_scale)
    unit = nvm.relative_to
    if unit == "own":
        scale, unit = scale * np.arange(nvm.levels), "spacing"
    even = (_root_mean_square(scale),) * nvm.levels
    return nvm.replace(level_scale=even, relative_to=unit, state_rule="device")


def _root_mean_square(values) -> float:
    return math.sqrt(float(np.mean(np.square(values))))


def _is_shifted(nvm: NVMDevice) -> bool:
    return nvm.level_mean is not None and nvm.level_mean != tuple(map(float, range(nvm.levels)))


EFFECTS = (
    Effect(
        "programming noise",
        ("sigma",),
        lambda nvm: bool(_spread(nvm).any()),
        lambda nvm: nvm.replace(sigma=0.0),
        lambda nvm: f"sigma {nvm.sigma:g}",
    ),
    Effect(
        "level dependence",
        ("level_scale", "state_rule", "level_std"),
        _is_uneven,
        _evened,
        lambda nvm: nvm.name,
    ),
    Effect(
        "mean shift",
        ("level_mean",),
        _is_shifted,
        lambda nvm: nvm.replace(level_mean=tuple(range(nvm.levels))),
        lambda nvm: nvm.name,
    ),
    Effect(
        "clipping",
        ("clip",),
        lambda nvm: nvm.clip is not None,
        lambda nvm: nvm.replace(clip=None),
        lambda nvm: f"{nvm.clip[0]:g} to {nvm.clip[1]:g}" if nvm.clip else "",
    ),
    Effect(
        "censoring",
        ("censor",),
        lambda nvm: nvm.censor is not None,
        lambda nvm: nvm.replace(censor=None),
        lambda nvm: f"z <= {nvm.censor:g}",
    ),
    Effect(
        "truncation",
        ("truncate",),
        lambda nvm: nvm.truncate is not None,
        lambda nvm: nvm.replace(truncate=None),
        lambda nvm: f"|z| <= {nvm.truncate:g}",
    ),
    Effect(
        "stuck devices",
        ("stuck",),
        lambda nvm: nvm.stuck != (0.0, 0.0),
        lambda nvm: nvm.replace(stuck=(0.0, 0.0)),
        lambda nvm: f"{100 * nvm.stuck[0]:g} % at 0, {100 * nvm.stuck[1]:g} % at the top",
    ),
    Effect(
        "idle array",
        ("mapping",),
        lambda nvm: nvm.mapping == "differential",
        lambda nvm: nvm.replace(mapping="sign"),
        lambda nvm: "differential mapping",
    ),
)


def effects_of(nvm: NVMDevice) -> list[Effect]:
    """The effects that a device has, in a fixed order."""
    return [effect for effect in EFFECTS if effect.present(nvm)]


def without(nvm: NVMDevice, *effects: Effect) -> NVMDevice:
    """The device without these effects, by the same sampler: the two samplers draw different normals."""
    path = nvm.path
    for effect in effects:
        if effect.present(nvm):
            nvm = effect.removed(nvm)
    return nvm if nvm.path == path else nvm.replace(sampling=path)


def with_only(nvm: NVMDevice, effect: Effect) -> NVMDevice:
    """The device with no effect but this one, by the same sampler."""
    return without(nvm, *(other for other in EFFECTS if other is not effect))


def is_exact(nvm: NVMDevice) -> bool:
    """Whether every programmed weight is the quantized weight, for all chips."""
    mean, spread = nvm.level_table()
    bites = nvm.clip is not None and (nvm.clip[0] > 0 or nvm.clip[1] < 1)
    exact = bool((mean == np.arange(nvm.levels)).all()) and not spread.any()
    return exact and not bites and nvm.stuck == (0.0, 0.0)
