"""Options that several commands share: the device model, the model and the data."""

from __future__ import annotations

import argparse

from .. import data, models
from ..device import PRESETS, NVMDevice


def add_device(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("device model")
    group.add_argument("--weight-bits", type=int, default=8, metavar="M", help="bits of a weight (default 8)")
    group.add_argument("--device-bits", type=int, default=2, metavar="K", help="bits of a device (default 2)")
    group.add_argument("--relative-to", choices=("max", "spacing", "own"), default="max", help="what sigma is relative to")
    group.add_argument("--mapping", choices=("sign", "differential"), default="sign", help="arrays of a weight")
    group.add_argument("--preset", choices=sorted(PRESETS), help="a published two-bit device")
    group.add_argument("--table", metavar="CSV", help="a measured device: columns level, mean, std in level units")


def device_of(arguments: argparse.Namespace, sigma: float) -> NVMDevice:
    """The device model that the options describe, at `sigma`."""
    common = {"weight_bits": arguments.weight_bits, "mapping": arguments.mapping}
    if arguments.table:
        return NVMDevice.from_table(arguments.table, sigma=sigma, **common)
    common |= {"relative_to": arguments.relative_to, "device_bits": arguments.device_bits}
    if arguments.preset:
        return NVMDevice.preset(arguments.preset, sigma=sigma, **common)
    return NVMDevice(sigma=sigma, **common)


def add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dataset", choices=data.NAMES, default="digits", help="data set (default digits, which ships with scikit-learn)")
    parser.add_argument("--data-dir", metavar="DIR", help="folder of the published files (default: NFT_EXT_DATA)")


def add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", choices=models.NAMES, default="vgg8", help="network (default vgg8)")
    parser.add_argument("--width", type=float, default=1.0, help="factor on all channel counts (default 1)")
