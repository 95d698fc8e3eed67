"""Is chips_per_pass="auto" right on the CPU? CPU time per chip of several networks, for 1, 2, 4, ... chips per pass.

python bench/studies/passes.py [--networks mlp,convolutions,encoder-128] [--rounds 5] [--threads 1] [--out FILE]

All numbers of chips are timed alternately in one process. CPU time counts, so other processes disturb little. `loss` is
the time of the choice of "auto" relative to the best number timed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

if not __package__:  # started as a file: import from the checkout, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch
from torch import Tensor, nn

import nft_ext as nft
from bench.harness import machine
from bench.studies.networks import Encoder
from nft_ext import models
from nft_ext._common.files import write_json
from nft_ext.montecarlo.execution.passes import chips_that_fit, probe
from nft_ext.montecarlo.tasks.outputs import split_chips

RUNS = 64  # chips of the evaluation; at most as many are timed in one pass
MOST = 512 << 20  # bytes of the largest output above which a number of chips is not timed


def _mlp(inputs: int, width: int) -> nn.Module:
    layers = [nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)]
    return nn.Sequential(*layers)


def _tokens(count: int) -> Callable[[int], Tensor]:
    return lambda batch: torch.randint(100, (batch, count), generator=torch.Generator().manual_seed(0))


def _images(batch: int) -> Tensor:
    return torch.randn(batch, 3, 32, 32)


# name -> (network, inputs of a batch, batches)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Tensor], tuple[int, ...]]] = {
    "small-mlp": (lambda: _mlp(64, 32), lambda batch: torch.randn(batch, 64), (8, 128)),
    "mlp": (lambda: _mlp(784, 512), lambda batch: torch.randn(batch, 784), (8, 128)),
    "convolutions": (
        lambda: models.build("vgg8", 10, 3, 0.25),
        _images,
        (1, 8, 32),
    ),
    "resnet": (lambda: models.build("resnet18", 10, 3, 0.25), _images, (1, 8, 32)),
    "encoder-16": (lambda: Encoder(8, layers=1, words=100), _tokens(16), (1, 8, 50)),
    "encoder-128": (lambda: Encoder(8, layers=1, words=100), _tokens(128), (1, 8, 50)),
}


@torch.no_grad()
def timed(model: nn.Module, inputs: Tensor, rounds: int) -> dict[str, Any]:
    """CPU seconds per chip for each number of chips, and the choice of "auto"."""

    def forward(x: Tensor, draws: list[int]) -> Tensor:
        with nft.chips(model, draws=draws):
            return split_chips(model(x), len(draws), len(x))

    batch, here = len(inputs), torch.device("cpu")
    found = probe(model, lambda x: forward(x, [0]), inputs, batch)
    weights = 4 * max(layer.weight.numel() for layer in nft.noisy_layers(model).values())
    auto = chips_that_fit(RUNS, batch, found.row_bytes, weights, here, found.rows)
    counts = {1, auto} | {count for count in (2, 4, 8, 16, 32, 64) if count * batch * found.row_bytes <= MOST}
    seconds = dict.fromkeys(sorted(counts), float("inf"))
    for number in range(rounds + 1):
        for count in seconds:
            start = time.process_time()
            forward(inputs, list(range(count)))
            took = (time.process_time() - start) / count
            if number:  # the first round allocates and checks
                seconds[count] = min(seconds[count], took)
    best = min(seconds.values())
    return {
        "batch": batch,
        "auto": auto,
        "seconds": {str(count): value for count, value in seconds.items()},
        "to_one": seconds[auto] / seconds[1],
        "loss": seconds[auto] / best,
    }


def study(names: list[str], rounds: int) -> dict[str, list[dict[str, Any]]]:
    """`timed` for every batch of the networks."""
    found: dict[str, list[dict[str, Any]]] = {}
    for name in names:
        build, make, batches = NETWORKS[name]
        torch.manual_seed(0)
        model = nft.convert(build().eval(), nft.NVMDevice(sigma=0.1))
        found[name] = []
        for batch in batches:
            row = timed(model, make(batch), rounds)
            found[name].append(row)
            ratios = {count: round(value / row["seconds"]["1"], 2) for count, value in row["seconds"].items()}
            print(
                f"{name:12s} batch {batch:3d}: {row['auto']:2d} chips, {row['to_one']:.2f} of one chip per pass, "
                f"{row['loss']:.2f} of the best; {ratios}",
                flush=True,
            )
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench/studies/passes.py", description=__doc__.splitlines()[0])
    parser.add_argument("--networks", default=",".join(NETWORKS), help="names, separated by commas")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="JSON file")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    names = options.networks.split(",")
    if unknown := [name for name in names if name not in NETWORKS]:
        parser.error(f"--networks: must be among {', '.join(NETWORKS)}; got {unknown[0]}")
    found = study(names, options.rounds)
    if options.out is not None:
        write_json(options.out, {"machine": machine.header(), "networks": found})
    return 0


if __name__ == "__main__":
    sys.exit(main())
