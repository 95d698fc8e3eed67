"""Is the loader fast enough? Images per second of loading and augmentation against the training step.

python bench/studies/loader.py [--model vgg8] [--width 1] [--method noise] [--shape 3,32,32] [--device cuda]
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

if not __package__:  # started as a file: import from the checkout, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch
from torch import Tensor, nn

from bench.harness import machine
from nft_ext import methods, models
from nft_ext.data.augment import CropFlip
from nft_ext.training.batches import Batches, permuted
from nft_ext.training.ranks import Ranks
from nft_ext.training.recipe import Recipe
from nft_ext.training.step import Gradient


@dataclasses.dataclass(frozen=True)
class Rates:
    """Images per second (medians over batches): loaded, loaded and augmented, and trained on."""

    batches: float
    augmented: float
    step: float

    @property
    def share(self) -> float:
        """The loader's share of the time of a step that loads, augments and trains."""
        return (1 / self.augmented) / (1 / self.augmented + 1 / self.step)

    def text(self) -> str:
        return (
            f"batches {self.batches:,.0f} images/s, with augmentation {self.augmented:,.0f}, "
            f"training step {self.step:,.0f}; loading takes {100 * self.share:.1f} % of a step"
        )


def measure(
    model: nn.Module,
    method: methods.Method,
    images: Tensor,
    labels: Tensor,
    augment: Callable[[Tensor], Tensor] | None,
    recipe: Recipe,
    device: torch.device,
    seconds: float = 5.0,
) -> Rates:
    """Times the loader and the training step that `fit` uses, each for about `seconds`.

    Args:
        images: [n, C, H, W], with labels [n].
    """
    batches = Batches("train", (images, labels))
    indices = permuted(len(labels), recipe.batch_size, torch.Generator().manual_seed(0))
    prepared = method.prepare(model).to(device, memory_format=recipe.memory_format).train()
    optimizer = recipe.build_optimizer(prepared.parameters())
    whole = Gradient(prepared, method, recipe, batches, None, 0, Ranks(0, 1, device), False)

    def load(chosen: Tensor, change: Callable[[Tensor], Tensor] | None) -> None:
        x = batches.take(chosen)[0].to(device)
        if change is not None:
            change(x)

    def train(chosen: Tensor) -> None:
        whole(chosen, 0)
        optimizer.step()

    plain = _rate(lambda chosen: load(chosen, None), indices, seconds, device)
    augmented = _rate(lambda chosen: load(chosen, augment), indices, seconds, device)
    trained = _rate(train, indices, seconds, device)
    # The step loads its images too: subtract that.
    return Rates(plain, augmented, 1 / max(1 / trained - 1 / plain, 1e-12))


def _rate(work: Callable[[Tensor], None], indices: list[Tensor], seconds: float, device: torch.device) -> float:
    """Images per second: the median over batches, after an untimed one."""
    work(indices[0])
    rates: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or not rates:
        chosen = indices[len(rates) % len(indices)]
        _wait(device)
        start = time.perf_counter()
        work(chosen)
        _wait(device)
        rates.append(len(chosen) / (time.perf_counter() - start))
    return statistics.median(rates)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench/studies/loader.py", description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=models.NAMES, default="vgg8")
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--method", choices=("vanilla", "noise", "ovf", "irs"), default="noise")
    parser.add_argument("--shape", default="3,32,32", metavar="C,H,W", help="shape of an image (default 3,32,32)")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--images", type=int, default=10000, help="images in memory (default 10000)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seconds", type=float, default=5.0, help="seconds for each of the three rates (default 5)")
    options = parser.parse_args(argv)
    shape = [int(n) for n in options.shape.split(",")]
    given = {"sigma": 0.1, "beta": 1e-3}
    taken = methods.options_of(options.method)
    method = methods.build(options.method, **{name: value for name, value in given.items() if name in taken})
    images, labels = torch.randn(options.images, *shape), torch.randint(10, (options.images,))
    model = models.build(options.model, 10, shape[0], options.width)
    print(machine.text(machine.header() | {"malloc": "default"}))
    rates = measure(
        model,
        method,
        images,
        labels,
        CropFlip(),
        Recipe(batch_size=options.batch_size),
        torch.device(options.device),
        options.seconds,
    )
    print(
        f"{options.model} at width {options.width:g}, {method.name}, batch {options.batch_size} of {shape}, "
        f"crop and flip, {options.device}: {rates.text()}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
