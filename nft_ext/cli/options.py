"""Options shared by several commands: device model, network and data."""

from __future__ import annotations

import argparse
from typing import Any

from nft_ext import data, models
from nft_ext._common.checks import fail, file_path
from nft_ext._common.initialisation import INITS
from nft_ext.device.fields import SCALES
from nft_ext.device.model import PRESETS, NVMDevice

DEFAULT_DEVICE = NVMDevice()

# Options named like fields of NVMDevice. An option that is not given is None.
_FIELDS = (
    *("weight_bits", "device_bits", "relative_to", "mapping", "clip", "censor", "truncate", "stuck"),
    *("scale", "array_rows", "array_columns"),
)


def add_device(parser: argparse.ArgumentParser, left_open: str = "a Gaussian device") -> None:
    group = parser.add_argument_group("device model", f"default: {left_open}")
    group.add_argument("--weight-bits", type=int, metavar="M", help="bits per weight (default 8)")
    group.add_argument("--device-bits", type=int, metavar="K", help="bits per device (default 2)")
    group.add_argument(
        "--relative-to",
        choices=("max", "spacing", "own"),
        help="unit of sigma: maximal conductance, distance between two levels, or the device's own level (default max)",
    )
    group.add_argument(
        "--mapping",
        choices=("sign", "differential"),
        help="one array per weight (sign, default) or a noisy pair (differential)",
    )
    group.add_argument(
        "--clip",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="lowest and highest conductance, as fractions of the maximal one",
    )
    group.add_argument("--censor", type=float, metavar="C", help="replace each normal z by min(z, C)")
    group.add_argument("--truncate", type=float, metavar="C", help="draw normals with |z| <= C only (write-verify)")
    group.add_argument(
        "--stuck",
        type=float,
        nargs=2,
        metavar=("OFF", "ON"),
        help="probabilities that a device is stuck at level 0 and at the top level",
    )
    group.add_argument(
        "--scale",
        choices=SCALES,
        help="weights that share a step: those of a layer (default), an output, or its part on one array (tile)",
    )
    group.add_argument("--array-rows", type=int, metavar="R", help="inputs per array (default: all of a layer)")
    group.add_argument("--array-columns", type=int, metavar="C", help="outputs per array (default: all of a layer)")
    source = group.add_mutually_exclusive_group()
    source.add_argument("--preset", choices=sorted(PRESETS), help="a published two-bit device")
    source.add_argument(
        "--table", metavar="CSV", help="a measured device: columns level, mean, std, in the unit of --unit"
    )
    group.add_argument("--unit", choices=("level", "microsiemens"), help="unit of --table (default level)")
    group.add_argument("--g-min", type=float, metavar="G", help="conductance of level 0, with --unit microsiemens")
    group.add_argument(
        "--g-max", type=float, metavar="G", help="conductance of the top level, with --unit microsiemens"
    )


def device_of(arguments: argparse.Namespace, sigma: float, left_open: NVMDevice = DEFAULT_DEVICE) -> NVMDevice:
    """The device model that the options describe, at `sigma`.

    Args:
        left_open: supplies every field without an option. With --preset or --table it supplies only
            `weight_bits` and `mapping`.
    """
    given = _given(arguments, _FIELDS)
    if "relative_to" in given and (arguments.table is not None or (left_open.level_std and not arguments.preset)):
        fail(
            "--relative-to",
            "must be left out for a measured device, because its table sets the deviations",
            given["relative_to"],
        )
    measured = _given(arguments, ("unit", "g_min", "g_max"))
    if measured and arguments.table is None:
        fail("--unit, --g-min, --g-max", "need --table", measured)
    if arguments.table is None and arguments.preset is None:
        return left_open.replace(sigma=sigma, **given)
    kept = {"weight_bits": left_open.weight_bits, "mapping": left_open.mapping} | given
    if arguments.table is not None:
        if not file_path("--table", arguments.table).is_file():
            fail("--table", "must name a file with the columns level, mean, std", arguments.table, FileNotFoundError)
        return NVMDevice.from_table(arguments.table, sigma=sigma, **measured, **kept)
    return NVMDevice.preset(arguments.preset, sigma=sigma, **kept)


def _given(arguments: argparse.Namespace, names: tuple[str, ...]) -> dict[str, Any]:
    """The options among `names` that are given. Pairs become tuples, as NVMDevice takes them."""
    values = {name: getattr(arguments, name) for name in names}
    return {name: tuple(v) if isinstance(v, list) else v for name, v in values.items() if v is not None}


def sigma_left_open(arguments: argparse.Namespace) -> float:
    """The default sigma: 1 for a measured device (its own deviations), else 0.1."""
    return 0.1 if arguments.table is None else 1.0


def add_data(parser: argparse.ArgumentParser, left_open: str | None = None) -> None:
    """Adds --dataset and --data-dir.

    Args:
        left_open: the default of --dataset in words, for commands that find it in a checkpoint; None: digits.
    """
    default = "digits" if left_open is None else None
    parser.add_argument(
        "--dataset", choices=data.NAMES, default=default, help=f"data set (default: {left_open or 'digits'})"
    )
    parser.add_argument(
        "--data-dir",
        metavar="DIR",
        help="folder of the published files, see nft-ext fetch (default: $NFT_EXT_DATA; digits needs none)",
    )


def add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", choices=models.NAMES, default="vgg8", help="network (default vgg8)")
    parser.add_argument("--width", type=float, default=1.0, help="factor on all channel counts (default 1)")
    parser.add_argument(
        "--init",
        choices=INITS,
        default="default",
        help="initial weights: default (torch's), or published (normal, variance 2 / fan_out, biases 0)",
    )
