"""The time that a grid takes on this machine, from a few timed training steps and noisy batches."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

from nft_ext import methods, models
from nft_ext._common.channels_last import channels_last
from nft_ext.device import NVMDevice
from nft_ext.methods import Method
from nft_ext.nn.contexts import chips
from nft_ext.nn.conversion import convert
from nft_ext.reproduce.grid import Cell
from nft_ext.reproduce.work import sets
from nft_ext.training.recipe import with_memory_format

BATCH = 128  # images per timed batch


def seconds(cells: Sequence[Cell], data_dir: str | None) -> dict[str, float]:
    """Estimated seconds of each cell, by key: training, validation and Monte Carlo in one process.

    Cells that differ only in sigma, seed or numbers of the method take the same time. They are timed once.
    """
    known: dict[tuple, tuple[float, float]] = {}
    found = {}
    for cell in cells:
        train, test = sets(cell.panel, cell.scale, data_dir)
        kind = (
            cell.panel,
            cell.method["name"],
            cell.method.get("feedbacks"),
            cell.scale.width,
            cell.scale.batch_size,
            cell.scale.precision,
            cell.scale.channels_last,
        )
        if kind not in known:
            known[kind] = _measured(cell, train.images, train.labels, train.num_classes)
        step, image = known[kind]
        trained = round(len(train) * (1 - cell.scale.validation))
        steps = -(-trained // cell.scale.batch_size) * (cell.epochs + cell.pretrained)
        if cell.scale.selection == "published":
            judged = 2 * len(test)
        else:
            judged = (len(train) - trained or len(test)) * (cell.scale.validation_chips + 1)
        validated = judged * cell.epochs
        measured = len(test) * cell.scale.runs * len(cell.sigmas)
        found[cell.key] = steps * step + (validated + measured) * image
    return found


def _measured(cell: Cell, images: torch.Tensor, labels: torch.Tensor, classes: int) -> tuple[float, float]:
    """(seconds per training step, seconds per image and chip)."""
    model = models.build(cell.panel.model, classes, images.shape[1], cell.scale.width, cell.scale.init)
    recipe = cell.scale.recipe(cell.panel)
    method: Method = methods.build(**(cell.method if cell.tuning is None else cell.with_option(cell.tuning.values[0])))
    nvm = NVMDevice(sigma=cell.sigma or 0.1)
    prepared = method.prepare(model, None if method.sigma is None else nvm).train()
    prepared = with_memory_format(prepared, recipe.memory_format)
    optimizer = torch.optim.Adam(prepared.parameters(), lr=1e-4)
    x, target = recipe.laid_out(images[: cell.scale.batch_size]), labels[: cell.scale.batch_size]

    def step() -> None:
        optimizer.zero_grad()
        with recipe.autocast(x.device):
            loss = method.loss(prepared, x, target)
        loss.backward()
        optimizer.step()

    noisy = convert(model.eval(), nvm)
    batch = channels_last(images[: min(BATCH, cell.scale.test_images or BATCH)])  # as monte_carlo does on a CPU

    @torch.no_grad()
    def inference() -> None:
        with chips(noisy):
            noisy(batch)

    return _seconds(step), _seconds(inference) / len(batch)


def _seconds(call: Callable[[], None], calls: int = 3) -> float:
    call()
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls
