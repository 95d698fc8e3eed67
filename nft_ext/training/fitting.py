"""`fit`: trains a plain model by any method, and keeps the epoch that validates best, or the last."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from nft_ext._common.bfloat16 import warn_where_slow
from nft_ext._common.checks import fail, integer, module, one_of
from nft_ext._common.logits import logits_of
from nft_ext.data import ImageSet
from nft_ext.device import NVMDevice
from nft_ext.methods import Method
from nft_ext.training import ranks as processes
from nft_ext.training.batches import Batches
from nft_ext.training.checkpoint import describe_model, versions
from nft_ext.training.configuration import configuration
from nft_ext.training.history import History
from nft_ext.training.loop import Loop
from nft_ext.training.outputs import Outputs
from nft_ext.training.randomness import own_randomness
from nft_ext.training.ranks import Ranks
from nft_ext.training.recipe import Recipe
from nft_ext.training.selection import KEEP
from nft_ext.training.state import StateFile
from nft_ext.training.step import Gradient


def fit(
    model: nn.Module,
    method: Method,
    train: Any,
    validation: Any,
    *,
    recipe: Recipe | None = None,
    seed: int = 0,
    nvm: NVMDevice | None = None,
    device: str | torch.device | None = None,
    augment: Callable[[Tensor], Tensor] | None = None,
    validation_chips: int = 4,
    keep: str = "best",
    compile: bool = False,
    chip_per_rank: bool = False,
    progress: bool | None = True,
    log: str | PathLike | None = None,
    tensorboard: str | PathLike | None = None,
    checkpoint: str | PathLike | None = None,
    meta: Mapping[str, Any] | None = None,
    state: str | PathLike | None = None,
    resume: bool = True,
    save_every: float = 60.0,
    **changes: Any,
) -> History:
    """Trains a copy of `model` and returns the plain backbone of the best epoch.

    The best epoch is the one with the highest validation accuracy, at equal accuracy the lowest validation
    cross-entropy, then the earliest. It is measured after each epoch on `validation_chips` chips at the
    method's sigma, the same ones each time, from the "selection" key domain: no chip of the training or of
    an evaluation is among them. A method without noise (vanilla) is selected by its plain accuracy. No test
    set is seen.

    Everything random (batch order, noise, classifiers, augmentation) follows from `seed` and the step; torch's
    global generators (of the CPU and of the device used) are put back as they were. On the CPU, the same seed and
    thread count give the same weights bit for bit. On CUDA some of torch's kernels add in an order of their own.

    With `state`, a run that was killed at any moment, called again with the same arguments, continues from its last
    save and ends as if it had never stopped (bit for bit under the conditions above, and as far as data and augment
    draw from torch's generators only); a run that is over returns at once. The model's initial weights matter to the
    first call only.

    Under torchrun all ranks call `fit` with the same arguments. Each takes its share of every batch, gradients
    are added, all end with the same weights; the first rank writes the files. All ranks use the same chips, those
    that one process would use: without BatchNorm and augmentation the run is that of one process up to rounding.
    BatchNorm normalises by the statistics of each rank's share; running statistics are averaged.

    Ctrl-C ends the training and returns what was reached, `History.interrupted` set.

    Args:
        model: a plain module, `[B, C, H, W] -> [B, classes]`; not changed.
        method: a `nft_ext.methods` object.
        train, validation: an ImageSet, a map-style Dataset of (image, label), or a pair of tensors.
        recipe: epochs, batch size, optimizer, precision, ...; None: `Recipe()`. See also `Recipe.paper`.
        nvm: the device model, its sigma replaced by the method's; None: `NVMDevice()`.
        device: where to train; None: where the model is.
        augment: maps a batch of images `[B, C, H, W]` to another, drawing from torch's generator.
        validation_chips: chips an epoch is judged on, in float32 whatever the recipe's precision.
        keep: "best", the epoch chosen as above, or "last": the weights of the last epoch that ended, however it
            validates.
        compile: run the training forward and backward through torch.compile (the model, not the step; the
            validation stays eager).
        chip_per_rank: under torchrun, each rank programs chips of its own.
        progress: True shows it, None on a terminal only, False never.
        log: CSV file, rewritten after each epoch.
        tensorboard: folder for TensorBoard's event files (needs the package tensorboard).
        checkpoint: file for the best epoch's weights, rewritten at each better epoch.
        meta: entries added to the checkpoint's metadata: model (arguments of `nft_ext.models.build`, None for
            another model), method, device, recipe, seed, validation_chips, versions, epoch, validation, and dataset,
            the first part of an ImageSet's name.
        state: file to keep the run's state in, and to continue from where it exists.
        resume: False: begin anew although there is a state.
        save_every: seconds from one save of the state within an epoch to the next; it is also saved after each
            epoch. 0: after every step.
        changes: attributes of the recipe to set otherwise, for example `epochs=20, lr=1e-2`.

    Raises:
        TypeError, ValueError, FileNotFoundError: bad arguments, a state of another configuration (the message
            shows the difference) or corrupt; before any training.
        ImportError: tensorboard is asked for and not installed.
        NonFiniteLoss: the loss became NaN or infinite; its `.history` holds the last good weights.
        OSError: a file could not be written; it is named, and an older one is kept.
    """
    recipe = _checked_recipe(recipe).replace(**changes)
    module("model", model)
    if not isinstance(method, Method):
        fail("method", "must be a method of nft_ext.methods", type(method).__name__, kind=TypeError)
    integer("seed", seed, 0)
    integer("validation_chips", validation_chips, 1)
    one_of("keep", keep, KEEP)
    # Left out of the usual run's description: states and checkpoints written before there was a choice stay valid.
    kept = {} if keep == "best" else {"keep": keep}
    parameter = next(model.parameters(), None)
    if parameter is None:
        fail("model", "must have parameters to train", type(model).__name__)
    device = processes.place(torch.device(device) if device is not None else parameter.device)
    named = {"dataset": train.name.split("/")[0]} if isinstance(train, ImageSet) else {}
    train, validation = Batches("train", train), Batches("validation", validation)
    warn_where_slow(recipe.precision, device)
    nvm = None if method.sigma is None else (nvm or NVMDevice()).replace(sigma=method.sigma)

    ranks = processes.joined(device)
    _check_shares(recipe, train, ranks)
    with own_randomness(seed, device):
        notes = {
            "model": describe_model(model),
            "method": method.config(),
            "device": None if nvm is None else nvm.describe(),
            "recipe": dataclasses.asdict(recipe),
            "seed": seed,
            "validation_chips": validation_chips,
            **kept,
            "versions": versions(),
            **named,
            **(meta or {}),
        }
        outputs = Outputs(log, checkpoint, tensorboard, notes) if ranks.first else Outputs(None, None, None, notes)
        prepared = method.prepare(model, nvm).to(device, memory_format=recipe.memory_format)
        keeper = None
        if state is not None or ranks.size > 1:
            run = configuration(
                prepared,
                method,
                nvm,
                recipe,
                {"train": train, "validation": validation},
                augment,
                seed=seed,
                validation_chips=validation_chips,
                compile=compile,
                device=device.type,
                ranks=ranks.size,
                chip_per_rank=chip_per_rank,
                **kept,
            )
            ranks.agree_with_first("fit", run | {"state": None if state is None else str(state)})
            ranks.share_weights(prepared)
            keeper = None if state is None else StateFile(state, run, resume, save_every, writes=ranks.first)
        history = History(method.finish(prepared).to(memory_format=torch.contiguous_format).eval())
        _check_fit(history.model, train, validation, device)
        if compile:
            prepared.compile()
        gradient = Gradient(prepared, method, recipe, train, augment, seed, ranks, chip_per_rank)
        loop = Loop(gradient, validation, validation_chips, keep, compile, history)
        loop.run(progress if ranks.first else False, outputs, keeper)
    return history


def _checked_recipe(recipe: Recipe | None) -> Recipe:
    if recipe is not None and not isinstance(recipe, Recipe):
        fail("recipe", "must be a nft_ext.training.Recipe", type(recipe).__name__, kind=TypeError)
    return recipe or Recipe()


def _check_shares(recipe: Recipe, train: Batches, ranks: Ranks) -> None:
    """Every rank gets the same number of images, at least two, of each batch."""
    if ranks.size == 1:
        return
    if recipe.batch_size % ranks.size or recipe.batch_size < 2 * ranks.size:
        fail(
            "batch_size",
            f"must be a multiple of the number of ranks, {ranks.size}, and at least twice it",
            recipe.batch_size,
        )
    if len(train) < 2 * ranks.size:
        fail("train", f"must hold at least two images a rank, {2 * ranks.size}", len(train))


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
