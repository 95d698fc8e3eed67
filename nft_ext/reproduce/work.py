"""One cell: trains its network, and measures it over programmed chips."""

from __future__ import annotations

import functools
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nft_ext import data, methods, models
from nft_ext.build_info import info
from nft_ext.contexts import noise
from nft_ext.conversion import convert
from nft_ext.data import ImageSet
from nft_ext.device import NVMDevice
from nft_ext.montecarlo import monte_carlo
from nft_ext.reproduce.grid import Cell
from nft_ext.reproduce.panels import Panel, Scale
from nft_ext.reproduce.store import Store
from nft_ext.training import fit, load_model

EVALUATION_SEED = 0  # of the chips: the same for all cells, so that checkpoints can be compared on common chips


@functools.lru_cache(maxsize=2)
def _sets(dataset: str, data_dir: str | None) -> tuple[ImageSet, ImageSet]:
    return data.load(dataset, data_dir)


def sets(panel: Panel, scale: Scale, data_dir: str | None) -> tuple[ImageSet, ImageSet]:
    """(train, test) of a panel, as many images as the scale says, evenly spaced."""
    train, test = _sets(panel.dataset, data_dir)
    return _spaced(train, scale.train_images), _spaced(test, scale.test_images)


def _spaced(images: ImageSet, count: int | None) -> ImageSet:
    n = len(images)
    return images if count is None or count >= n else images.subset([i * n // count for i in range(count)])


def work(cell: Cell, store: Store, data_dir: str | None, device: str | None, progress: bool | None,
         keep_checkpoint: bool = False) -> dict[str, Any]:
    """The content of the cell's file, without its key.

    Raises:
        KeyboardInterrupt: the training was interrupted; its state is kept, and a later call goes on from there.
    """
    began = time.monotonic()
    train, test = sets(cell.panel, cell.scale, data_dir)
    train, validation = data.split_validation(train, cell.scale.validation, seed=cell.seed)
    model = _start(cell, store, train, data_dir, device, progress)
    method = methods.build(**cell.method)
    nvm = NVMDevice() if cell.sigma is None else NVMDevice(sigma=cell.sigma)
    recipe = cell.scale.replace(epochs=cell.epochs).recipe(cell.panel)
    history = fit(model, method, train, validation, recipe=recipe, seed=cell.seed, nvm=nvm, device=device, augment=data.augment_for(train),
                  validation_chips=cell.scale.validation_chips, progress=progress, state=store.state(cell),
                  checkpoint=store.checkpoint(cell) if keep_checkpoint else None, meta={"dataset": cell.panel.dataset})
    if history.interrupted:
        raise KeyboardInterrupt
    noisy = convert(history.model, nvm)
    points = []
    for sigma in cell.sigmas:
        report = monte_carlo(noisy, test, runs=cell.scale.runs, seed=EVALUATION_SEED, sigma=sigma, metrics=("accuracy", "ekl", "nll"),
                             device=device, progress=progress)
        if report.interrupted:
            raise KeyboardInterrupt
        points.append({"sigma": sigma, "accuracy": report.accuracy.per_run.tolist(), "ekl": _number(report.ekl.pooled),
                       "nll": _number(report.nll.pooled), "ece": report.ece, "images": report.images})
    best = history.best
    return {
        "config": cell.config(), "training": {"best": best, "epochs_done": len(history.rows), "seconds": history.seconds},
        "points": points, "clean": clean_accuracy(noisy, test), "versions": _versions(), "seconds": time.monotonic() - began,
    }


def _start(cell: Cell, store: Store, train: ImageSet, data_dir: str | None, device: str | None, progress: bool | None) -> nn.Module:
    """The network that training starts from: fresh, the same for all methods of a seed, or a vanilla cell's."""
    torch.manual_seed(cell.seed)
    fresh = models.build(cell.panel.model, train.num_classes, train.channels, cell.scale.width)
    if not cell.pretrained:
        return fresh
    vanilla = Cell(cell.panel, "vanilla", methods.Vanilla().config(), None, cell.sigmas, cell.seed, cell.scale, cell.pretrained)
    path = store.checkpoint(vanilla)
    if not path.exists():
        found = work(vanilla, store, data_dir, device, progress, keep_checkpoint=True)
        store.write(vanilla, found)
        store.forget_state(vanilla)
    return load_model(path)[0]


@torch.no_grad()
def clean_accuracy(model: nn.Module, test: ImageSet, batch_size: int = 256) -> float:
    """Accuracy with the noise off: the quantized weights W_d."""
    device = next(model.parameters()).device
    right = 0
    with noise(model.eval(), enabled=False):
        for start in range(0, len(test), batch_size):
            batch = slice(start, start + batch_size)
            right += int((model(test.images[batch].to(device)).argmax(1) == test.labels[batch].to(device)).sum())
    return right / len(test)


def _number(value: float) -> float | None:
    return None if value != value else value  # NaN is no JSON


def _versions() -> dict[str, str]:
    built = info()
    return {name: str(built[name]) for name in ("nft_ext", "torch", "numpy", "python", "instruction_set", "threads", "machine")}
