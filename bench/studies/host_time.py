"""Host time of a training step: CPU time of a very narrow ResNet-18 on 4 x 4 images, which is Python and dispatch.

python bench/studies/host_time.py [--rounds 60] [--methods ovf,noise,irs] [--profile 0] [--out FILE]

Steps of all methods alternate in one process, with as many plain forwards and backwards of the same network beside
them ("plain"). One thread, CPU time, medians. So other processes disturb the ratios little. Another version is compared
by starting this file in its checkout, in turn with this one.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from unittest import mock

if not __package__:  # started as a file: import from the checkout, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch

import nft_ext as nft
from bench.harness import machine
from nft_ext import methods, models
from nft_ext._common.files import write_json
from nft_ext.models import common

PASSES = {"ovf": 4, "noise": 1, "irs": 1}  # forwards and backwards of the network in a step
_WIDTH = 1 / 64  # one channel in the first layers, eight in the last
_SIDE = 4  # pixels


def steps(names: list[str]) -> dict[str, Callable[[], None]]:
    """One optimizer step of each method, and of a plain network with as many forwards."""
    made = {}
    nvm = nft.NVMDevice(sigma=0.1)
    of = {
        "ovf": methods.OVF(sigma=0.1, beta=0.1),
        "noise": methods.NoiseInjection(sigma=0.1),
        "irs": methods.IRS(sigma=0.1, beta=0.1, input_shape=(3, _SIDE, _SIDE)),
    }
    for name in names:
        torch.manual_seed(0)
        plain = models.resnet18(width=_WIDTH)
        with mock.patch.object(common, "IMAGE_SIZE", _SIDE):
            prepared = of[name].prepare(plain, nvm)
        made[name] = _step(prepared, of[name].loss)
        made[f"{name}, plain"] = _step(plain, _plain_loss(PASSES[name]))
    return made


def _plain_loss(passes: int) -> Callable[..., torch.Tensor]:
    def loss(model: torch.nn.Module, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        total = model(x)
        for _ in range(passes - 1):
            total = total + model(x)
        return torch.nn.functional.cross_entropy(total, target)

    return loss


def _step(model: torch.nn.Module, loss: Callable[..., torch.Tensor]) -> Callable[[], None]:
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9)
    x, target = torch.randn(2, 3, _SIDE, _SIDE), torch.tensor([1, 2])

    def step() -> None:
        optimizer.zero_grad()
        with mock.patch.object(common, "IMAGE_SIZE", _SIDE):
            value = loss(model, x, target)
        value.backward()
        optimizer.step()

    return step


def measured(made: dict[str, Callable[[], None]], rounds: int) -> dict[str, dict[str, float]]:
    """name -> median and least CPU seconds of a step, in interleaved rounds."""
    times: dict[str, list[float]] = {name: [] for name in made}
    for number in range(rounds + 5):
        for name, step in made.items():
            start = time.process_time()
            step()
            if number >= 5:
                times[name].append(time.process_time() - start)
    return {name: {"median": statistics.median(found), "least": min(found)} for name, found in times.items()}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench/studies/host_time.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--methods", default="ovf,noise,irs")
    parser.add_argument("--profile", type=int, default=0, help="print so many functions with the most CPU time")
    parser.add_argument("--out", type=Path, help="JSON file")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # networks this narrow lie outside of what the package advises
    names = options.methods.split(",")
    made = steps(names)
    found = measured(made, options.rounds)
    for name in names:
        own, plain = found[name], found[f"{name}, plain"]
        print(
            f"{name}: median {1e3 * own['median']:.1f} ms of CPU time per step, least {1e3 * own['least']:.1f}; "
            f"plain modules {1e3 * plain['median']:.1f}, least {1e3 * plain['least']:.1f}; "
            f"ratio {own['median'] / plain['median']:.2f}, of the least {own['least'] / plain['least']:.2f}"
        )
    if options.profile:
        for name in names:
            with cProfile.Profile(time.process_time) as profile:
                for _ in range(20):
                    made[name]()
            print(f"\n{name}, 20 steps:")
            pstats.Stats(profile).sort_stats("tottime").print_stats(options.profile)
    if options.out is not None:
        write_json(options.out, {"machine": machine.header(), "rounds": options.rounds, "steps": found})
    return 0


if __name__ == "__main__":
    sys.exit(main())
