"""What checkpoints say of themselves, for what the options leave open: the data set, the device, sigma.

Metas: the metadata of `nft_ext.training.load_model`, by the checkpoint's name.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from typing import Any

from nft_ext import data
from nft_ext._common.checks import fail
from nft_ext.cli import options
from nft_ext.device import NVMDevice

Metas = Mapping[str, Mapping[str, Any]]

DEVICE = "as the checkpoint was trained for"
DATA = "the one trained on"


def dataset_of(arguments: argparse.Namespace, metas: Metas) -> str:
    """The data set to evaluate on: the one asked for, or the one that all were trained on.

    Raises:
        ValueError: none is asked for, and the checkpoints do not name one.
    """
    trained_on = {name: meta.get("dataset") for name, meta in metas.items()}
    if arguments.dataset is not None:
        for name, own in trained_on.items():
            if own not in (None, arguments.dataset):
                print(f"note: {name} was trained on {own}, and is evaluated on {arguments.dataset}", file=sys.stderr)
        return arguments.dataset
    found = set(trained_on.values())
    if len(found) != 1 or not found <= set(data.NAMES):
        fail("--dataset", "must be given where the checkpoints do not name one data set that nft-ext loads", trained_on)
    return found.pop()


def device_left_open(arguments: argparse.Namespace, metas: Metas) -> NVMDevice:
    """The device that the checkpoints were trained for, at any sigma; the default one if for none.

    Raises:
        ValueError: they were trained for several, and the options do not describe a whole one.
    """
    recorded = {name: meta["device"] for name, meta in metas.items() if meta.get("device")}
    found = {name: NVMDevice.described(device).replace(sigma=0.0) for name, device in recorded.items()}
    if len(set(found.values())) <= 1:
        return next(iter(found.values()), NVMDevice())
    whole = (
        arguments.table
        or arguments.preset
        or getattr(arguments, "presets", None)
        or (arguments.weight_bits and arguments.device_bits)
    )
    if not whole:
        fail(
            "checkpoint",
            "must be trained for one device, or --preset, --table, or --weight-bits and --device-bits say which to evaluate on",
            recorded,
        )
    return NVMDevice()


def sigma_left_open(arguments: argparse.Namespace, meta: Mapping[str, Any], device: NVMDevice) -> float:
    """The sigma that a checkpoint was trained at, where sigma has the same unit on `device`."""
    own = meta.get("device") or {}
    same_unit = own.get("relative_to") == device.describe()["relative_to"]
    return own["sigma"] if same_unit else options.sigma_left_open(arguments)
