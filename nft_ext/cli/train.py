"""nft-ext train: one network, one method, one checkpoint."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from . import options
from .training_options import add_training, check_resume, fit_options


def add_parser(commands) -> None:
    from .. import methods

    parser = commands.add_parser(
        "train", help="train one network with one method", description="Trains one network with one method. Writes OUT, "
        "the best epoch's weights; beside it the epochs as *.csv and the run's state as *.state.")
    parser.add_argument("out", type=Path, metavar="OUT", help="checkpoint to write (*.safetensors)")
    parser.add_argument("--method", choices=methods.NAMES, default="noise")
    parser.add_argument("--sigma", type=float, default=0.1, help="sigma trained at, in the device's convention (default 0.1)")
    parser.add_argument("--beta", type=float, default=1e-3, help="weight of the feedback, ovf and irs (default 1e-3)")
    parser.add_argument("--feedbacks", type=int, default=3, help="number of feedbacks N, ovf and control (default 3)")
    options.add_model(parser)
    options.add_data(parser)
    options.add_device(parser)
    add_training(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    import torch

    from .. import data, methods, models
    from ..training import fit

    check_resume(arguments)
    given = {"sigma": arguments.sigma, "beta": arguments.beta, "feedbacks": arguments.feedbacks}
    method = methods.build(arguments.method, **{k: v for k, v in given.items() if k in methods.options_of(arguments.method)})
    nvm = options.device_of(arguments, arguments.sigma)
    training = fit_options(arguments)
    train, _ = data.load(arguments.dataset, arguments.data_dir)
    train, validation = data.split_validation(train, arguments.validation, seed=arguments.seed)
    torch.manual_seed(arguments.seed)
    model = models.build(arguments.model, train.num_classes, train.channels, arguments.width)
    history = fit(model, method, train, validation, nvm=nvm, meta={"dataset": arguments.dataset}, **training)
    if int(os.environ.get("RANK", "0")) > 0:  # under torchrun the first rank speaks
        return 130 if history.interrupted else 0
    state = training["state"]
    if history.interrupted and state is not None and state.exists():
        print(f"interrupted; the same command with --resume continues from {state}")
    if history.best is None:
        print("interrupted before the first epoch ended; there is no checkpoint yet")
        return 130
    best = history.best
    print(f"best epoch {best['epoch']}: validation accuracy {100 * best['val_accuracy']:.2f} % "
          f"(noise off {100 * best['val_clean']:.2f} %), {history.seconds:.0f} s; wrote {arguments.out}")
    return 130 if history.interrupted else 0
