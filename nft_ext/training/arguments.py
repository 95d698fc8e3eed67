"""The arguments of `fit` that have no other owner, checked before any work."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from nft_ext._common.checks import boolean, fail, file_path, instance, integer, number, one_of, optional_boolean
from nft_ext.device import NVMDevice
from nft_ext.training.selection import KEEP


def check_arguments(
    *,
    seed: Any,
    nvm: Any,
    augment: Any,
    validation_chips: Any,
    keep: Any,
    switches: Mapping[str, Any],
    progress: Any,
    files: Mapping[str, Any],
    meta: Any,
    save_every: Any,
) -> None:
    """Checks arguments of `fit` under their own names; `switches` and `files` hold those of one kind, name -> value.

    Raises:
        TypeError, ValueError: a value of another type or out of its range.
    """
    integer("seed", seed, 0)
    integer("validation_chips", validation_chips, 1)
    one_of("keep", keep, KEEP)
    if nvm is not None:
        instance("nvm", nvm, NVMDevice, "an NVMDevice or None")
    if augment is not None and not callable(augment):
        fail("augment", "must be a function of a batch of images, or None", repr(augment), TypeError)
    for name, value in switches.items():
        boolean(name, value)
    optional_boolean("progress", progress)
    for name, value in files.items():
        if value is not None:
            file_path(name, value)
    number("save_every", save_every, 0.0)
    if meta is not None:
        try:
            json.dumps(dict(instance("meta", meta, Mapping, "a mapping or None")), allow_nan=False)
        except (TypeError, ValueError) as error:
            fail("meta", "must hold values that JSON can hold", str(error).removeprefix("meta: "), type(error))
