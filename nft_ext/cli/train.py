"""nft-ext train: one network, one method, one checkpoint."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from . import options
from .method_options import add_method, method_of


def add_parser(commands) -> None:
    parser = commands.add_parser("train", help="train one network with one method")
    parser.add_argument("out", type=Path, help="checkpoint to write (*.safetensors); the epochs' log goes beside it (*.csv)")
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--optimizer", choices=("adam", "sgd"), default="adam")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--weight-decay", type=float, default=0.0)
    parser.add_argument("--validation", type=float, default=0.1, help="share of the training set kept for selection (default 0.1)")
    parser.add_argument("--augment", choices=("auto", "none"), default="auto", help="auto (default): crop and flip for CIFAR")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", help="cpu or cuda (default cpu)")
    add_method(parser)
    options.add_model(parser)
    options.add_data(parser)
    options.add_device(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    import torch

    from .. import data, models
    from ..training import fit, search_beta
    from ..training.files import write_atomically

    method = method_of(arguments)
    nvm = options.device_of(arguments, arguments.sigma)
    train, _ = data.load(arguments.dataset, arguments.data_dir)
    train, validation = data.split_validation(train, arguments.validation, seed=arguments.seed)
    torch.manual_seed(arguments.seed)
    model = models.build(arguments.model, train.num_classes, train.channels, arguments.width)
    augment = data.augment_for(train) if arguments.augment == "auto" else None
    search = arguments.beta == "search"
    train_by = search_beta if search else fit
    found = train_by(model, method, train, validation, epochs=arguments.epochs, batch_size=arguments.batch_size,
                     optimizer=arguments.optimizer, lr=arguments.lr, weight_decay=arguments.weight_decay, seed=arguments.seed, nvm=nvm,
                     device=arguments.device, augment=augment, log=arguments.out.with_suffix(".csv"), checkpoint=arguments.out,
                     meta={"dataset": arguments.dataset})
    history = found.best if search else found
    if search:
        print(found)
        write_atomically(arguments.out.with_suffix(".search.json"), (json.dumps(found.to_dict(), indent=1) + "\n").encode())
    if history is None or history.best is None:
        print("interrupted before the first epoch (of a search for beta: the first run) ended; nothing was written")
        return 130
    best = history.best
    print(f"best epoch {best['epoch']}: validation accuracy {100 * best['val_accuracy']:.2f} % "
          f"(noise off {100 * best['val_clean']:.2f} %), {history.seconds:.0f} s; wrote {arguments.out}")
    return 130 if found.interrupted else 0
