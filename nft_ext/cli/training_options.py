"""Options of nft-ext train: recipe, speed, output files and resuming."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from nft_ext._common.bfloat16 import PRECISIONS
from nft_ext._common.files import check_distinct
from nft_ext.cli import outputs
from nft_ext.training.beta_search import BETAS, beside
from nft_ext.training.recipe import OPTIMIZERS, SCHEDULES, Recipe

RECIPE = tuple(field.name for field in dataclasses.fields(Recipe))


def add_training(parser: argparse.ArgumentParser) -> None:
    recipe = parser.add_argument_group("training", "The defaults are the paper's for the network and the data set.")
    recipe.add_argument("--epochs", type=int, metavar="N", help="passes over the training images (default 200)")
    recipe.add_argument("--batch-size", type=int, metavar="B", help="images per step over all ranks (default 128)")
    recipe.add_argument("--optimizer", choices=OPTIMIZERS, help="optimizer (default adam; sgd for tinyimagenet)")
    recipe.add_argument(
        "--lr",
        type=float,
        help="learning rate at the start (default 1e-3 for vgg8, 1e-2 for resnet18 and tinyimagenet)",
    )
    recipe.add_argument("--momentum", type=float, help="momentum of sgd (default 0.9)")
    recipe.add_argument("--weight-decay", type=float, help="weight decay (default 0; 5e-4 for tinyimagenet)")
    recipe.add_argument("--schedule", choices=SCHEDULES, help="how the learning rate changes (default cosine)")
    recipe.add_argument(
        "--accumulate", type=int, metavar="K", help="micro-batches per step, each on its own chip (default 1)"
    )
    recipe.add_argument(
        "--validation",
        type=float,
        default=0.1,
        metavar="SHARE",
        help="share of the training images that chooses the best epoch (default 0.1)",
    )
    recipe.add_argument(
        "--augment", choices=("auto", "none"), default="auto", help="auto (default) crops and flips CIFAR images"
    )
    recipe.add_argument("--seed", type=int, default=0, help="seed of weights, data order and chips (default 0)")

    speed = parser.add_argument_group("speed", "Under torchrun, several processes share one training.")
    speed.add_argument("--device", metavar="TORCH_DEVICE", help="cpu or cuda (default cpu)")
    speed.add_argument("--precision", choices=PRECISIONS, help="precision of the training forward (default float32)")
    speed.add_argument(
        "--channels-last", action="store_true", default=None, help="channels innermost in memory, often faster"
    )
    speed.add_argument("--compile", action="store_true", help="run the model through torch.compile")
    speed.add_argument(
        "--chip-per-rank", action="store_true", help="under torchrun, each rank programs its own chip per step"
    )

    output = parser.add_argument_group("output")
    output.add_argument(
        "--resume", action="store_true", help="continue a stopped training from its *.state file, if there is one"
    )
    output.add_argument("--restart", action="store_true", help="start over and replace the files of an earlier one")
    output.add_argument(
        "--save-every",
        type=float,
        default=60.0,
        metavar="S",
        help="seconds between saves of the state (default 60); it is also saved after each epoch",
    )
    output.add_argument("--no-state", action="store_true", help="write no *.state file; the training cannot be resumed")
    output.add_argument("--tensorboard", metavar="DIR", help="folder for TensorBoard event files")


def recipe_of(arguments: argparse.Namespace) -> Recipe:
    """The paper's recipe, changed by the options."""
    given = {name: getattr(arguments, name) for name in RECIPE if getattr(arguments, name) is not None}
    return Recipe.paper(arguments.model, arguments.dataset, **given)


def fit_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `fit`, from the options. The log and the state lie beside the checkpoint."""
    out: Path = arguments.out
    return {
        "recipe": recipe_of(arguments),
        "seed": arguments.seed,
        "device": arguments.device,
        "compile": arguments.compile,
        "chip_per_rank": arguments.chip_per_rank,
        "checkpoint": out,
        "log": outputs.beside(out, ".csv"),
        "tensorboard": arguments.tensorboard,
        "state": None if arguments.no_state else outputs.beside(out, ".state"),
        "resume": arguments.resume,
        "save_every": arguments.save_every,
    }


def check_outputs(arguments: argparse.Namespace) -> None:
    """Checks the output files before any work.

    Raises:
        ValueError: options exclude each other, a file cannot be written, or it would replace a file that must stay.
    """
    if arguments.resume and arguments.no_state:
        raise ValueError("--resume: must not be combined with --no-state; got both")
    out, state = arguments.out, outputs.beside(arguments.out, ".state")
    searched = arguments.beta == "search"
    states = [] if arguments.no_state else [beside(state, beta) for beta in BETAS] if searched else [state]
    log = outputs.beside(out, ".csv")
    files = [log, *([outputs.beside(out, ".search.json")] if searched else [])]
    for file in (out, *files, *states):
        check_distinct({"--table": arguments.table, "OUT": file})
    outputs.check_training(out, arguments.resume, arguments.restart, files, states)
