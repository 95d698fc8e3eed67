"""`fit`: trains a plain model by any method, and keeps the epoch that validates best."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from nft_ext.checks import fail, integer
from nft_ext.device import NVMDevice
from nft_ext.methods import Method
from nft_ext.outputs import logits_of
from nft_ext.training.batches import Batches
from nft_ext.training.checkpoint import describe_model, versions
from nft_ext.training.files import check_writable_target
from nft_ext.training.history import History
from nft_ext.training.loop import Loop
from nft_ext.training.recipe import Recipe


def fit(
    model: nn.Module,
    method: Method,
    train: Any,
    validation: Any,
    *,
    epochs: int,
    batch_size: int = 128,
    optimizer: str = "adam",
    lr: float = 1e-3,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    schedule: str = "cosine",
    seed: int = 0,
    nvm: NVMDevice | None = None,
    device: str | torch.device | None = None,
    augment: Callable[[Tensor], Tensor] | None = None,
    validation_chips: int = 4,
    compile: bool = False,
    progress: bool | None = True,
    log: str | PathLike | None = None,
    checkpoint: str | PathLike | None = None,
    meta: Mapping[str, Any] | None = None,
) -> History:
    """Trains a copy of `model` and returns the plain backbone of the best epoch.

    The best epoch is the one with the highest validation accuracy, at equal accuracy the lowest validation
    cross-entropy, then the earliest. It is measured after each epoch on `validation_chips` chips at the
    method's sigma, the same ones each time, from the "selection" key domain: no chip of the training or of
    an evaluation is among them. A method without noise (vanilla) is selected by its plain accuracy. No test
    set is seen.

    Everything random (batch order, noise, classifiers, augmentation) follows from `seed`; torch's global
    generators (of the CPU and of the device used) are put back as they were. On the CPU, the same seed and
    thread count give the same weights bit for bit. On CUDA some of torch's kernels add in an order of their own.

    Ctrl-C ends the training and returns what was reached, `History.interrupted` set.

    Args:
        model: a plain module, `[B, C, H, W] -> [B, classes]`; not changed.
        method: a `nft_ext.methods` object.
        train, validation: an ImageSet, a map-style Dataset of (image, label), or a pair of tensors.
        epochs: passes over `train`.
        batch_size: images a step.
        optimizer: "adam" or "sgd" (with `momentum`).
        lr: the learning rate at the start.
        weight_decay: L2 penalty of the optimizer.
        schedule: "cosine" (to 0, stepped every batch) or "constant".
        nvm: the device model, its sigma replaced by the method's; None: `NVMDevice()`.
        device: where to train; None: where the model is.
        augment: maps a batch of images `[B, C, H, W]` to another, drawing from torch's generator.
        validation_chips: chips an epoch is judged on.
        compile: run the training forward and backward through torch.compile (the model, not the step; the
            validation stays eager).
        progress: True shows it, None on a terminal only, False never.
        log: CSV file, rewritten after each epoch.
        checkpoint: file for the best epoch's weights, rewritten at each better epoch.
        meta: entries added to the checkpoint's metadata: model (arguments of `nft_ext.models.build`, None for
            another model), method, device, recipe, seed, validation_chips, versions, epoch, validation.

    Raises:
        TypeError, ValueError, FileNotFoundError: bad arguments, before any training.
        NonFiniteLoss: the loss became NaN or infinite; its `.history` holds the last good weights.
    """
    recipe = Recipe(epochs, batch_size, optimizer, lr, momentum, weight_decay, schedule)
    if not isinstance(model, nn.Module):
        fail("model", "must be a torch.nn.Module", type(model).__name__, kind=TypeError)
    if not isinstance(method, Method):
        fail("method", "must be a method of nft_ext.methods", type(method).__name__, kind=TypeError)
    integer("seed", seed, 0)
    integer("validation_chips", validation_chips, 1)
    for argument, path in (("log", log), ("checkpoint", checkpoint)):
        if path is not None:
            check_writable_target(argument, path)
    parameter = next(model.parameters(), None)
    if parameter is None:
        fail("model", "must have parameters to train", type(model).__name__)
    device = torch.device(device) if device is not None else parameter.device
    train, validation = Batches("train", train), Batches("validation", validation)
    nvm = None if method.sigma is None else (nvm or NVMDevice()).replace(sigma=method.sigma)

    with _seeded(seed, device):
        prepared = method.prepare(model, nvm).to(device)
        history = History(method.finish(prepared).eval())
        _check_fit(history.model, train, validation, device)
        if compile:
            prepared.compile()
        notes = {
            "model": describe_model(model),
            "method": method.config(),
            "device": None if nvm is None else nvm.describe(),
            "recipe": dataclasses.asdict(recipe),
            "seed": seed,
            "validation_chips": validation_chips,
            "versions": versions(),
            **(meta or {}),
        }
        loop = Loop(
            prepared, method, recipe, train, validation, seed, device, augment, validation_chips, compile, history
        )
        loop.run(progress, log, checkpoint, notes)
    return history


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Inside, torch's generators of the CPU and of `device` start from `seed`; after, they are as before."""
    on_cuda = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_cuda else []):
        torch.default_generator.manual_seed(seed)
        if on_cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def _check_fit(plain: nn.Module, train: Batches, validation: Batches, device: torch.device) -> None:
    """One image through the plain model: do images, labels and model belong together?"""
    for data in (train, validation):
        image, _ = data.take(torch.tensor([0]))
        try:
            with torch.no_grad():
                logits = logits_of(plain(image.to(device)))
        except RuntimeError as error:
            fail(data.argument, f"must hold images the model takes ({error})", f"shape {list(image.shape[1:])}")
        if logits.dim() != 2:
            fail("model", "must give logits [B, classes]", f"shape {list(logits.shape)}")
        data.check_classes(logits.shape[1])
