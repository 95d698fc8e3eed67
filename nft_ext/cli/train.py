"""nft-ext train: one network, one method, one checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path

from nft_ext.cli import options
from nft_ext.cli.method_options import add_method, method_of, sigma_of
from nft_ext.cli.training_options import add_training, check_resume, fit_options


def add_parser(commands) -> None:
    parser = commands.add_parser(
        "train",
        help="train one network with one method",
        description="Trains one network with one method. Writes OUT, "
        "the best epoch's weights; beside it the epochs as *.csv and the run's state as *.state.",
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="checkpoint to write (*.safetensors)")
    add_method(parser)
    options.add_model(parser)
    options.add_data(parser)
    options.add_device(parser)
    add_training(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    import torch

    from nft_ext import data, models
    from nft_ext._common.files import write_json
    from nft_ext._common.processes import is_main
    from nft_ext.training import fit, search_beta

    check_resume(arguments)
    method = method_of(arguments)
    nvm = options.device_of(arguments, sigma_of(arguments))
    training = fit_options(arguments)
    train, _ = data.load(arguments.dataset, arguments.data_dir)
    train, validation = data.split_validation(train, arguments.validation, seed=arguments.seed)
    torch.manual_seed(arguments.seed)
    model = models.build(arguments.model, train.num_classes, train.channels, arguments.width)
    training["augment"] = data.augment_for(train) if arguments.augment == "auto" else None
    search = arguments.beta == "search"
    found = (search_beta if search else fit)(
        model,
        method,
        train,
        validation,
        nvm=nvm,
        **training,
        meta={"dataset": arguments.dataset, "validation_share": arguments.validation},
    )
    if not is_main():
        return 130 if found.interrupted else 0
    history = found.best if search else found
    if search:
        print(found)
        write_json(arguments.out.with_suffix(".search.json"), found.to_dict())
    state = training["state"]
    if found.interrupted and state is not None:
        print("interrupted; the same command with --resume continues")
    if history is None or history.best is None:
        print("interrupted before the first epoch ended; there is no checkpoint yet")
        return 130
    best = history.best
    print(
        f"best epoch {best['epoch']}: validation accuracy {100 * best['val_accuracy']:.2f} % "
        f"(noise off {100 * best['val_clean']:.2f} %), {history.seconds:.0f} s; wrote {arguments.out}"
    )
    return 130 if found.interrupted else 0
