"""nft-ext train: trains one network with one method and writes a checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path

from nft_ext.cli import checkpoints, options, outputs
from nft_ext.cli.method_options import add_method, method_of, sigma_of
from nft_ext.cli.training_options import add_training, check_outputs, fit_options


def add_parser(commands) -> None:
    from nft_ext import data

    parser = commands.add_parser(
        "train",
        help="train one network with one method",
        description="Trains one network with one method. Writes the weights of the best epoch to OUT. "
        "Beside it, *.csv gets one line per epoch, and *.state holds the data that --resume needs. "
        "Files of an earlier training are replaced only with --restart.",
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="checkpoint to write (*.safetensors)")
    add_method(parser)
    options.add_model(parser)
    options.add_data(parser)
    parser.add_argument(
        "--normalisation",
        choices=data.NORMALISATIONS,
        default="default",
        help="mean and std of the images: default (of the training images), or published (MNIST: 0.5 and 0.5)",
    )
    options.add_device(parser)
    add_training(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    import torch

    from nft_ext import data, models
    from nft_ext._common.checks import fail, number
    from nft_ext._common.files import write_json
    from nft_ext._common.processes import is_main
    from nft_ext.training import BetaSearch, fit, search_beta

    check_outputs(arguments)
    if not 0.0 < number("--validation", arguments.validation) < 1.0:
        fail("--validation", "must be > 0 and < 1", arguments.validation)
    method = method_of(arguments)
    nvm = options.device_of(arguments, sigma_of(arguments))
    training = fit_options(arguments)
    train, _ = data.load(arguments.dataset, arguments.data_dir, arguments.normalisation)
    train, validation = data.split_validation(train, arguments.validation, seed=arguments.seed)
    torch.manual_seed(arguments.seed)
    model = models.build(arguments.model, train.num_classes, train.channels, arguments.width, arguments.init)
    training["augment"] = data.augment_for(train) if arguments.augment == "auto" else None
    found = (search_beta if arguments.beta == "search" else fit)(
        model,
        method,
        train,
        validation,
        nvm=nvm,
        **training,
        meta={
            "dataset": arguments.dataset,
            "validation_share": arguments.validation,
            **checkpoints.normalisation_entry(arguments.normalisation),
        },
    )
    if not is_main():
        return 130 if found.interrupted else 0
    if isinstance(found, BetaSearch):
        history = found.best
        print(found)
        write_json(outputs.beside(arguments.out, ".search.json"), found.to_dict())
    else:
        history = found
    if found.interrupted and training["state"] is not None:
        print("interrupted; run the same command with --resume to continue")
    if history is None or history.best is None:
        print("interrupted before the first epoch ended; no checkpoint was written")
        return 130
    best = history.best
    print(
        f"best epoch {best['epoch']}: validation accuracy {100 * best['val_accuracy']:.2f} % "
        f"({100 * best['val_clean']:.2f} % without noise), {history.seconds:.0f} s; wrote {arguments.out}"
    )
    return 130 if found.interrupted else 0
