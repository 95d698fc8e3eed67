"""nft-ext train: one network, one method, one checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path

from . import options


def add_parser(commands) -> None:
    from .. import methods

    parser = commands.add_parser("train", help="train one network with one method")
    parser.add_argument("out", type=Path, help="checkpoint to write (*.safetensors); the epochs' log goes beside it (*.csv)")
    parser.add_argument("--method", choices=methods.NAMES, default="noise")
    parser.add_argument("--sigma", type=float, default=0.1, help="sigma trained at, in the device's convention (default 0.1)")
    parser.add_argument("--beta", type=float, default=1e-3, help="weight of the feedback, ovf and irs (default 1e-3)")
    parser.add_argument("--feedbacks", type=int, default=3, help="number of feedbacks N, ovf and control (default 3)")
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--optimizer", choices=("adam", "sgd"), default="adam")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--weight-decay", type=float, default=0.0)
    parser.add_argument("--validation", type=float, default=0.1, help="share of the training set kept for selection (default 0.1)")
    parser.add_argument("--augment", choices=("auto", "none"), default="auto", help="auto (default): crop and flip for CIFAR")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", help="cpu or cuda (default cpu)")
    options.add_model(parser)
    options.add_data(parser)
    options.add_device(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    import torch

    from .. import data, methods, models
    from ..training import fit

    given = {"sigma": arguments.sigma, "beta": arguments.beta, "feedbacks": arguments.feedbacks}
    method = methods.build(arguments.method, **{k: v for k, v in given.items() if k in methods.options_of(arguments.method)})
    nvm = options.device_of(arguments, arguments.sigma)
    train, _ = data.load(arguments.dataset, arguments.data_dir)
    train, validation = data.split_validation(train, arguments.validation, seed=arguments.seed)
    torch.manual_seed(arguments.seed)
    model = models.build(arguments.model, train.num_classes, train.channels, arguments.width)
    augment = data.augment_for(train) if arguments.augment == "auto" else None
    history = fit(model, method, train, validation, epochs=arguments.epochs, batch_size=arguments.batch_size,
                  optimizer=arguments.optimizer, lr=arguments.lr, weight_decay=arguments.weight_decay, seed=arguments.seed, nvm=nvm,
                  device=arguments.device, augment=augment, log=arguments.out.with_suffix(".csv"), checkpoint=arguments.out,
                  meta={"dataset": arguments.dataset})
    if history.best is None:
        print("interrupted before the first epoch ended; nothing was written")
        return 130
    best = history.best
    print(f"best epoch {best['epoch']}: validation accuracy {100 * best['val_accuracy']:.2f} % "
          f"(noise off {100 * best['val_clean']:.2f} %), {history.seconds:.0f} s; wrote {arguments.out}")
    return 130 if history.interrupted else 0
