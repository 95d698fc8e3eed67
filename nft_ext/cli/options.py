"""Options that several commands share: the device model, the model and the data."""

from __future__ import annotations

import argparse

from nft_ext import data, models
from nft_ext._common.checks import fail
from nft_ext.device.model import PRESETS, NVMDevice

# Options by the names of NVMDevice's fields; what is not given is None.
_FIELDS = ("weight_bits", "device_bits", "relative_to", "mapping", "clip", "censor", "truncate", "stuck")


def add_device(parser: argparse.ArgumentParser, left_open: str = "Gaussian devices of the default M and K") -> None:
    group = parser.add_argument_group("device model", f"what is left open: {left_open}")
    group.add_argument("--weight-bits", type=int, metavar="M", help="bits of a weight (default 8)")
    group.add_argument("--device-bits", type=int, metavar="K", help="bits of a device (default 2)")
    group.add_argument(
        "--relative-to", choices=("max", "spacing", "own"), help="what sigma is relative to (default max)"
    )
    group.add_argument("--mapping", choices=("sign", "differential"), help="arrays of a weight (default sign)")
    group.add_argument(
        "--clip", type=float, nargs=2, metavar=("LOW", "HIGH"), help="bounds of a conductance, of the maximal one"
    )
    group.add_argument("--censor", type=float, metavar="C", help="right-censored Gaussian, min(z, C)")
    group.add_argument("--truncate", type=float, metavar="C", help="Gaussian truncated to |z| <= C (write-verify)")
    group.add_argument(
        "--stuck",
        type=float,
        nargs=2,
        metavar=("OFF", "ON"),
        help="probabilities of devices stuck at level 0, at the top level",
    )
    source = group.add_mutually_exclusive_group()
    source.add_argument("--preset", choices=sorted(PRESETS), help="a published two-bit device")
    source.add_argument(
        "--table", metavar="CSV", help="a measured device: columns level, mean, std, in level units or as --unit says"
    )
    group.add_argument("--unit", choices=("level", "microsiemens"), help="of --table (default level)")
    group.add_argument("--g-min", type=float, metavar="G", help="conductance of level 0, with --unit microsiemens")
    group.add_argument(
        "--g-max", type=float, metavar="G", help="conductance of the top level, with --unit microsiemens"
    )


def device_of(arguments: argparse.Namespace, sigma: float, left_open: NVMDevice = NVMDevice()) -> NVMDevice:
    """The device model that the options describe, at `sigma`; what they leave open is as in `left_open`.

    --preset and --table name another kind of device: of `left_open` only M and the mapping stay.
    """
    given = {name: getattr(arguments, name) for name in _FIELDS if getattr(arguments, name) is not None}
    if "relative_to" in given and (arguments.table or (left_open.level_std and not arguments.preset)):
        fail(
            "--relative-to",
            "must be left out for a measured device, whose deviations are as measured",
            given["relative_to"],
        )
    measured = {
        name: getattr(arguments, name) for name in ("unit", "g_min", "g_max") if getattr(arguments, name) is not None
    }
    if measured and not arguments.table:
        fail("--unit, --g-min, --g-max", "must be left out without --table", measured)
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    if not (arguments.table or arguments.preset):
        return left_open.replace(sigma=sigma, **given)
    kept = {"weight_bits": left_open.weight_bits, "mapping": left_open.mapping} | given
    if arguments.table:
        return NVMDevice.from_table(arguments.table, sigma=sigma, **measured, **kept)
    return NVMDevice.preset(arguments.preset, sigma=sigma, **kept)


def sigma_left_open(arguments: argparse.Namespace) -> float:
    """Sigma where nobody says: 0.1, and of a measured device 1, as measured."""
    return 1.0 if arguments.table else 0.1


def add_data(parser: argparse.ArgumentParser, left_open: str | None = None) -> None:
    """left_open: in words, what stands in for a data set that is not named; None: digits does."""
    default = "digits" if left_open is None else None
    words = left_open or "digits, which ships with scikit-learn"
    parser.add_argument("--dataset", choices=data.NAMES, default=default, help=f"data set (default {words})")
    parser.add_argument("--data-dir", metavar="DIR", help="folder of the published files (default: NFT_EXT_DATA)")


def add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", choices=models.NAMES, default="vgg8", help="network (default vgg8)")
    parser.add_argument("--width", type=float, default=1.0, help="factor on all channel counts (default 1)")
