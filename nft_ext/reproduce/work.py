"""Trains the network of one cell and measures it over programmed chips."""

from __future__ import annotations

import functools
import time
from typing import Any

import torch
from torch import nn

from nft_ext import data, methods, models
from nft_ext.data import ImageSet
from nft_ext.device import NVMDevice
from nft_ext.metrics import fit_temperature, tempered
from nft_ext.montecarlo import monte_carlo
from nft_ext.nn.contexts import chips, noise
from nft_ext.nn.conversion import convert
from nft_ext.ops.build_info import facts
from nft_ext.reproduce.grid import Cell
from nft_ext.reproduce.panels import Panel, Scale
from nft_ext.reproduce.store import Store
from nft_ext.reproduce.tuning import chosen, trial
from nft_ext.training import NonFiniteLoss, fit, load_model

BATCH = 256
TEMPERED_RUNS = 10  # most chips at the fitted temperature
EVALUATION_SEED = 0  # seed of the chips, equal for all cells, so networks are compared on the same chips


@functools.lru_cache(maxsize=2)
def _sets(dataset: str, data_dir: str | None, normalisation: str) -> tuple[ImageSet, ImageSet]:
    return data.load(dataset, data_dir, normalisation)


def sets(panel: Panel, scale: Scale, data_dir: str | None) -> tuple[ImageSet, ImageSet]:
    """(train, test) of a panel, with the number of images of the scale, evenly spaced."""
    train, test = _sets(panel.dataset, data_dir, scale.normalisation)
    return _spaced(train, scale.train_images), _spaced(test, scale.test_images)


def _spaced(images: ImageSet, count: int | None) -> ImageSet:
    n = len(images)
    return images if count is None or count >= n else images.subset([i * n // count for i in range(count)])


def work(
    cell: Cell,
    store: Store,
    data_dir: str | None,
    device: str | None,
    progress: bool | None,
    keep_checkpoint: bool = False,
) -> dict[str, Any]:
    """The content of the cell's file, without its key.

    Raises:
        KeyboardInterrupt: the training was interrupted. Its state is saved, and a later call continues it.
    """
    began = time.monotonic()
    train, test = sets(cell.panel, cell.scale, data_dir)
    validation = None
    if cell.scale.validation:
        train, validation = data.split_validation(train, cell.scale.validation, seed=cell.seed)
    model = _start(cell, store, train, data_dir, device, progress)
    tuned = _tuned(cell, store, data_dir, device, progress)
    method = methods.build(**(cell.method if tuned is None else cell.with_option(tuned["value"])))
    nvm = NVMDevice() if cell.sigma is None else NVMDevice(sigma=cell.sigma)
    recipe = cell.scale.replace(epochs=cell.epochs).recipe(cell.panel)
    diverged = None
    try:
        judged, selected = _selection(cell.scale, validation, test)
        history = fit(
            model,
            method,
            train,
            judged,
            recipe=recipe,
            seed=cell.seed,
            nvm=nvm,
            device=device,
            augment=data.augment_for(train),
            progress=progress,
            **selected,
            state=store.state(cell),
            checkpoint=store.checkpoint(cell) if keep_checkpoint else None,
            meta={"dataset": cell.panel.dataset, **_normalisation(cell.scale)},
        )
    except NonFiniteLoss as error:  # also a result: this training does not converge
        history, diverged = error.history, str(error)
    if history.interrupted:
        raise KeyboardInterrupt
    noisy = convert(history.model, nvm)
    points = [
        _point(noisy, test, sigma, cell.scale.runs, device, progress)
        | {"at_temperature": _at_temperature(noisy, validation, test, sigma, cell, device, progress)}
        for sigma in cell.sigmas
    ]
    best = history.best
    return {
        "config": cell.config(),
        "training": {"best": best, "epochs_done": len(history.rows), "seconds": history.seconds, "diverged": diverged},
        "points": points,
        # A search sees no test image.
        "clean": clean_accuracy(noisy, test) if cell.sigmas else None,
        **({} if tuned is None else {"tuned": tuned}),
        "versions": facts("nft_ext", "torch", "numpy", "python", "instruction_set", "threads", "machine"),
        "seconds": time.monotonic() - began,
    }


def _normalisation(scale: Scale) -> dict[str, str]:
    """The entry of a checkpoint's metadata by which `nft-ext evaluate` finds the same images."""
    return {} if scale.normalisation == "default" else {"normalisation": scale.normalisation}


def _selection(scale: Scale, validation: ImageSet | None, test: ImageSet) -> tuple[ImageSet, dict[str, Any]]:
    """(images that judge an epoch, options of `fit`). The selection does not change the training images."""
    if scale.selection == "published":
        return test, {"keep": "published"}
    # Without validation images the last epoch is kept, and the figures of the epochs decide nothing.
    return test if validation is None else validation, {
        "validation_chips": scale.validation_chips,
        "keep": "last" if scale.selection == "last" else "best",
    }


def _tuned(
    cell: Cell, store: Store, data_dir: str | None, device: str | None, progress: bool | None
) -> dict[str, Any] | None:
    """The choice of the cell's search, None without one. It trains what is missing of the search."""
    if cell.tuning is None:
        return None
    trials = []
    for value, trainings in cell.trials():
        for one in trainings:
            with store.claimed(one, wait=True):
                if store.read(one) is None:
                    store.write(one, work(one, store, data_dir, device, progress))
                    store.forget_state(one)
        trials.append(trial(value, [found for one in trainings if (found := store.read(one)) is not None]))
    return chosen(cell.tuning, trials)


def _point(
    model: nn.Module, test: ImageSet, sigma: float, runs: int, device: str | None, progress: bool | None
) -> dict[str, Any]:
    """Accuracy and EKL per chip, and the pooled figures."""
    report = monte_carlo(
        model,
        test,
        runs=runs,
        seed=EVALUATION_SEED,
        sigma=sigma,
        metrics=("accuracy", "ekl", "nll"),
        device=device,
        progress=progress,
    )
    if report.interrupted:
        raise KeyboardInterrupt
    return {
        "sigma": sigma,
        "accuracy": report.accuracy.per_run.tolist(),
        "ekl": _number(report.ekl.pooled),
        "ekl_per_chip": [_number(value) for value in report.ekl.per_run.tolist()],
        "nll": _number(report.nll.pooled),
        "ece": report.ece,
        "images": report.images,
    }


def _at_temperature(
    model: nn.Module,
    validation: ImageSet | None,
    test: ImageSet,
    sigma: float,
    cell: Cell,
    device: str | None,
    progress: bool | None,
) -> dict[str, Any] | None:
    """The pooled figures with the logits divided by a temperature, fitted on validation images and validation chips.

    These figures do not depend on a method's factor on the logits. None without validation images, or if logits
    overflow.
    """
    if validation is None:
        return None
    logits = _selection_logits(model, validation, sigma, cell)
    if not logits.isfinite().all():
        return None
    found = fit_temperature(logits, validation.labels)
    runs = min(cell.scale.runs, TEMPERED_RUNS)
    point = _point(tempered(model, found), test, sigma, runs, device, progress)
    return {"temperature": found.value, "at_limit": found.at_limit, "runs": runs} | {
        k: point[k] for k in ("ekl", "nll", "ece")
    }


@torch.no_grad()
def _selection_logits(model: nn.Module, images: ImageSet, sigma: float, cell: Cell) -> torch.Tensor:
    """Logits [S, n, C] on the chips that judged the epochs."""
    device = next(model.parameters()).device
    draws, parts = cell.scale.validation_chips, []
    with noise(model.eval(), sigma=sigma), chips(model, seed=cell.seed, draws=range(draws), domain="selection"):
        for start in range(0, len(images), BATCH):
            x = images.images[start : start + BATCH].to(device)
            parts.append(model(x).float().cpu().view(draws, len(x), -1))
    return torch.cat(parts, dim=1)


def _start(
    cell: Cell, store: Store, train: ImageSet, data_dir: str | None, device: str | None, progress: bool | None
) -> nn.Module:
    """The network before training: newly initialised, equal for all methods of a seed, or a trained vanilla network."""
    torch.manual_seed(cell.seed)
    fresh = models.build(cell.panel.model, train.num_classes, train.channels, cell.scale.width, cell.scale.init)
    vanilla = cell.start()
    if vanilla is None:
        return fresh
    path = store.checkpoint(vanilla)
    with store.claimed(vanilla, wait=True):  # several cells start from it: one process trains it, others wait
        # A checkpoint without a result comes from an interrupted training.
        if not path.exists() or store.read(vanilla) is None:
            found = work(vanilla, store, data_dir, device, progress, keep_checkpoint=True)
            store.write(vanilla, found)
            store.forget_state(vanilla)
    return load_model(path)[0]


@torch.no_grad()
def clean_accuracy(model: nn.Module, test: ImageSet, batch_size: int = BATCH) -> float:
    """Accuracy of the quantized weights W_d, without noise."""
    device = next(model.parameters()).device
    right = 0
    with noise(model.eval(), enabled=False):
        for start in range(0, len(test), batch_size):
            batch = slice(start, start + batch_size)
            right += int((model(test.images[batch].to(device)).argmax(1) == test.labels[batch].to(device)).sum())
    return right / len(test)


def _number(value: float) -> float | None:
    return None if value != value else value  # JSON has no NaN
