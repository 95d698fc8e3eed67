"""Options of nft-ext train about the training itself: the recipe, speed, what is written, and resuming."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from nft_ext._common.bfloat16 import PRECISIONS
from nft_ext.training.recipe import OPTIMIZERS, SCHEDULES, Recipe

RECIPE = tuple(field.name for field in dataclasses.fields(Recipe))


def add_training(parser: argparse.ArgumentParser) -> None:
    recipe = parser.add_argument_group("training", "defaults are the paper's for the network and the data set")
    recipe.add_argument("--epochs", type=int, metavar="N", help="passes over the training images (default 200)")
    recipe.add_argument(
        "--batch-size", type=int, metavar="B", help="images a step, on all ranks together (default 128)"
    )
    recipe.add_argument("--optimizer", choices=OPTIMIZERS, help="default adam; sgd for tinyimagenet")
    recipe.add_argument(
        "--lr",
        type=float,
        help="learning rate at the start (default 1e-3 for vgg8, 1e-2 for resnet18 and tinyimagenet)",
    )
    recipe.add_argument("--momentum", type=float, help="of sgd (default 0.9)")
    recipe.add_argument("--weight-decay", type=float, help="default 0; 5e-4 for tinyimagenet")
    recipe.add_argument("--schedule", choices=SCHEDULES, help="of the learning rate (default cosine)")
    recipe.add_argument(
        "--accumulate", type=int, metavar="K", help="micro-batches a step, each on its own chip (default 1)"
    )
    recipe.add_argument(
        "--validation", type=float, default=0.1, help="share of the training set kept for selection (default 0.1)"
    )
    recipe.add_argument(
        "--augment", choices=("auto", "none"), default="auto", help="auto (default): crop and flip for CIFAR"
    )
    recipe.add_argument("--seed", type=int, default=0)

    speed = parser.add_argument_group("speed", "torchrun shares a training among processes, all on the same chips")
    speed.add_argument("--device", help="cpu or cuda (default cpu)")
    speed.add_argument("--precision", choices=PRECISIONS, help="of the training forward (default float32)")
    speed.add_argument("--channels-last", action="store_true", default=None, help="channels innermost in memory")
    speed.add_argument("--compile", action="store_true", help="run the model through torch.compile")
    speed.add_argument(
        "--chip-per-rank", action="store_true", help="under torchrun: each rank programs chips of its own"
    )

    output = parser.add_argument_group("output")
    output.add_argument(
        "--resume", action="store_true", help="continue a run that was stopped, from OUT.state, if there is one"
    )
    output.add_argument(
        "--save-every",
        type=float,
        default=60.0,
        metavar="S",
        help="seconds between saves of OUT.state within an epoch; one follows each, too (default 60)",
    )
    output.add_argument("--no-state", action="store_true", help="keep no OUT.state; the run cannot be resumed")
    output.add_argument("--tensorboard", metavar="DIR", help="write TensorBoard's event files there")


def recipe_of(arguments: argparse.Namespace) -> Recipe:
    """The paper's recipe with what the options change."""
    given = {name: getattr(arguments, name) for name in RECIPE if getattr(arguments, name) is not None}
    return Recipe.paper(arguments.model, arguments.dataset, **given)


def fit_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The keywords of `fit` that the options give. The log and the state lie beside the checkpoint."""
    out: Path = arguments.out
    return {
        "recipe": recipe_of(arguments),
        "seed": arguments.seed,
        "device": arguments.device,
        "compile": arguments.compile,
        "chip_per_rank": arguments.chip_per_rank,
        "checkpoint": out,
        "log": out.with_suffix(".csv"),
        "tensorboard": arguments.tensorboard,
        "state": None if arguments.no_state else out.with_suffix(".state"),
        "resume": arguments.resume,
        "save_every": arguments.save_every,
    }


def check_resume(arguments: argparse.Namespace) -> None:
    if arguments.resume and arguments.no_state:
        raise ValueError("--resume: must not be combined with --no-state; got both")
