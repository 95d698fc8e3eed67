"""nft-ext demo: trains one network with five methods and compares them by Monte Carlo over programmed chips."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_parser(commands) -> None:
    parser = commands.add_parser(
        "demo",
        help="train one network with five methods and compare them",
        description="Trains VGG-8 with each method, then compares the networks by Monte Carlo over programmed chips. "
        "The defaults depend on the data set.",
    )
    parser.add_argument("--dataset", choices=("digits", "mnist"), default="digits", help="data set (default digits)")
    parser.add_argument("--data-dir", metavar="DIR", help="folder of MNIST's published files (default: $NFT_EXT_DATA)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for the results (default runs/demo-DATASET)")
    parser.add_argument("--sigma", type=float, help="sigma during training, as a share of the maximal conductance")
    parser.add_argument("--epochs", type=int, metavar="N", help="passes over the training images")
    parser.add_argument("--width", type=float, help="factor on VGG-8's channel counts")
    parser.add_argument("--runs", type=int, metavar="N", help="chips per network and sigma")
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help="some of vanilla, noise, control, ovf, irs")
    parser.add_argument("--seed", type=int, default=0, help="seed of training and chips (default 0)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from nft_ext.demo import SETTINGS, Demo

    given = {name: getattr(arguments, name) for name in ("sigma", "epochs", "width", "runs", "methods")}
    settings = SETTINGS[arguments.dataset].replace(
        seed=arguments.seed, **{k: v for k, v in given.items() if v is not None}
    )
    out = arguments.out or Path("runs") / f"demo-{arguments.dataset}"
    return 0 if Demo(settings, arguments.data_dir, out).run() else 130
