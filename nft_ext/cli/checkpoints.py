"""Defaults that a checkpoint supplies for options that are not given: the data set, the device, sigma."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from typing import Any

from nft_ext import data
from nft_ext._common.checks import fail
from nft_ext.cli import options
from nft_ext.device import NVMDevice

Metas = Mapping[str, Mapping[str, Any]]  # the metadata of `nft_ext.training.load_model`, by the checkpoint's name

DEVICE = "the checkpoint's device; if it names none, the defaults below"
DATA = "the checkpoint's"


def dataset_of(arguments: argparse.Namespace, metas: Metas) -> str:
    """The name of the data set to evaluate on: --dataset, or the one that all checkpoints were trained on.

    Raises:
        ValueError: --dataset is missing, and the checkpoints do not name exactly one known data set.
    """
    trained_on = {name: meta.get("dataset") for name, meta in metas.items()}
    if arguments.dataset is not None:
        for name, own in trained_on.items():
            if own not in (None, arguments.dataset):
                print(f"note: {name} was trained on {own} and is evaluated on {arguments.dataset}", file=sys.stderr)
        return arguments.dataset
    found = set(trained_on.values())
    if len(found) != 1 or not found <= set(data.NAMES):
        fail("--dataset", "must be given unless the checkpoints name one data set that nft-ext loads", trained_on)
    (name,) = found
    return str(name)


def normalisation_entry(normalisation: str) -> dict[str, str]:
    """The entry of a checkpoint's metadata for the normalisation of its images, nothing for the usual one."""
    return {} if normalisation == "default" else {"normalisation": normalisation}


def normalisation_of(metas: Metas) -> str:
    """The normalisation of the images that all checkpoints were trained on.

    Raises:
        ValueError: the checkpoints were trained under different normalisations.
    """
    found = {name: meta.get("normalisation", "default") for name, meta in metas.items()}
    if len(set(found.values())) != 1:
        fail("checkpoint", "must all be trained on images of one normalisation; evaluate the others apart", found)
    return next(iter(found.values()))


def device_left_open(arguments: argparse.Namespace, metas: Metas) -> NVMDevice:
    """The device that the checkpoints were trained for, or the default device if they name none.

    Sigma plays no part: checkpoints that differ only in sigma have the same device.

    Raises:
        ValueError: the checkpoints name several devices, and the options do not describe a complete one.
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
            "must all be trained for the same device; otherwise give --preset, --table, or --weight-bits and "
            "--device-bits",
            recorded,
        )
    return NVMDevice()


def sigma_left_open(arguments: argparse.Namespace, meta: Mapping[str, Any], device: NVMDevice) -> float:
    """The checkpoint's own sigma if `device` measures sigma in the same unit, else the default."""
    own = meta.get("device") or {}
    same_unit = own.get("relative_to") == device.describe()["relative_to"]
    return own["sigma"] if same_unit else options.sigma_left_open(arguments)
