"""nft-ext sweep: accuracy of checkpoints at several sigmas, all on the same chips."""

from __future__ import annotations

import argparse
from pathlib import Path

from nft_ext._common.checks import fail
from nft_ext.cli import checkpoints, evaluate, options, outputs
from nft_ext.device import NVMDevice


def add_parser(commands) -> None:
    parser = commands.add_parser(
        "sweep",
        help="compare checkpoints at several sigmas on the same chips",
        description="Measures the accuracy of every checkpoint at every sigma by Monte Carlo. All networks see the "
        "same chips, so their differences are paired.",
    )
    parser.add_argument("checkpoint", type=Path, nargs="+", help="files written by nft-ext train or demo")
    parser.add_argument("--sigma", type=float, nargs="+", required=True, help="sigmas to evaluate at")
    parser.add_argument(
        "--presets", nargs="+", metavar="NAME", help="several published devices instead of one --preset"
    )
    parser.add_argument(
        "--baseline", metavar="NAME", help="network that the others are compared with (default: the first)"
    )
    parser.add_argument(
        "--resume", type=Path, metavar="DIR", help="folder for finished chips; an existing folder is continued"
    )
    evaluate.add_monte_carlo(parser)
    options.add_data(parser, checkpoints.DATA)
    options.add_device(parser, checkpoints.DEVICE)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from nft_ext._common.processes import is_main
    from nft_ext.montecarlo import sweep
    from nft_ext.training import load_model

    models, metas = {}, {}
    for path in arguments.checkpoint:
        name = path.stem if path.stem not in models else str(path.with_suffix(""))
        if name in models:
            fail("checkpoint", "must name each file only once", str(path))
        models[name], metas[name] = load_model(path)
    arguments.dataset = checkpoints.dataset_of(arguments, metas)
    devices = _devices(arguments, checkpoints.device_left_open(arguments, metas))
    if arguments.out is not None and is_main():
        outputs.check_folder(arguments.out, ["sweep.json", "sweep.csv", "sweep.png"], {"--table": arguments.table})
    found = sweep(
        models,
        evaluate.test_set(arguments, metas),
        arguments.sigma,
        devices,
        resume=arguments.resume,
        **evaluate.settings(arguments),
    )
    if is_main():
        print(found)
        if len(found.reports) > 1:
            print("\n" + found.differences_table(arguments.baseline))
        if arguments.out is not None:
            found.to_json(arguments.out / "sweep.json")
            found.to_csv(arguments.out / "sweep.csv")
            title = f"{', '.join(models)} on {arguments.dataset}"
            outputs.plotted(lambda: found.plot(arguments.out / "sweep.png", title))
            print(f"wrote {arguments.out}")
    return 130 if found.interrupted else 0


def _devices(arguments: argparse.Namespace, left_open: NVMDevice) -> dict[str, NVMDevice]:
    """The devices by preset name; a single device has the name ""."""
    if arguments.presets is None:
        return {"": options.device_of(arguments, arguments.sigma[0], left_open)}
    if arguments.preset or arguments.table:
        fail("--presets", "must be left out with --preset or --table", arguments.presets)
    devices = {}
    for preset in arguments.presets:
        arguments.preset = preset
        devices[preset] = options.device_of(arguments, arguments.sigma[0], left_open)
    return devices
