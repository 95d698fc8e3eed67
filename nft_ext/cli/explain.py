"""nft-ext explain: where the accuracy of a checkpoint goes, by effect and by layer."""

from __future__ import annotations

import argparse
from pathlib import Path

from nft_ext.cli import checkpoints, evaluate, options, outputs


def add_parser(commands) -> None:
    parser = commands.add_parser(
        "explain",
        help="what each effect of the device and each layer's noise costs",
        description="Switches effects of the device and the noise of layers off and on, on common chips, and compares "
        "the accuracies chip by chip. Uses the checkpoint's data set, device and sigma. Override them with --dataset, "
        "--sigma and the device options.",
    )
    parser.add_argument("checkpoint", type=Path, help="file written by nft-ext train or demo")
    parser.add_argument("--sigma", type=float, help="sigma (default: the checkpoint's)")
    parser.add_argument(
        "--by",
        nargs="+",
        choices=("layer", "effect"),
        default=["layer", "effect"],
        help="the noise of layers, the effects of the device, or both (default both)",
    )
    parser.add_argument(
        "--layers",
        nargs="+",
        metavar="NAME",
        help="compare only these layers: names, or patterns such as 'features.*' (default all)",
    )
    parser.add_argument(
        "--most-layers",
        type=int,
        metavar="N",
        help="largest number of rows for layers; a first look on few chips chooses them",
    )
    parser.add_argument("--metric", default="accuracy", help="accuracy, ekl or nll (default accuracy)")
    parser.add_argument(
        "--resume", type=Path, metavar="DIR", help="folder for finished chips; an existing folder is continued"
    )
    evaluate.add_chips(parser, runs=64)
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for explanation.json and explanation.png")
    options.add_data(parser, checkpoints.DATA)
    options.add_device(parser, checkpoints.DEVICE)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from nft_ext._common.processes import is_main
    from nft_ext.montecarlo import explain
    from nft_ext.nn.conversion import convert
    from nft_ext.training import load_model

    model, meta = load_model(arguments.checkpoint)
    metas = {arguments.checkpoint.stem: meta}
    arguments.dataset = checkpoints.dataset_of(arguments, metas)
    device = options.device_of(arguments, 0.0, checkpoints.device_left_open(arguments, metas))
    sigma = arguments.sigma
    if sigma is None:
        sigma = checkpoints.sigma_left_open(arguments, meta, device)
    noisy = convert(model, device.replace(sigma=sigma))
    if arguments.out is not None and is_main():
        inputs = {"--table": arguments.table, "checkpoint": arguments.checkpoint}
        outputs.check_folder(arguments.out, ["explanation.json", "explanation.png"], inputs)
    found = explain(
        noisy,
        evaluate.test_set(arguments, metas),
        by=arguments.by,
        layers=arguments.layers,
        most_layers=arguments.most_layers,
        metric=arguments.metric,
        resume=arguments.resume,
        **evaluate.chip_settings(arguments),
    )
    if is_main():
        print(found)
        if arguments.out is not None:
            found.to_json(arguments.out / "explanation.json")
            outputs.plotted(lambda: found.plot(arguments.out / "explanation.png"))
            print(f"wrote {arguments.out}")
    return 130 if found.interrupted else 0
