"""`fit`: trains a plain model with any method and keeps the best or the last epoch."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from nft_ext._common.bfloat16 import warn_where_slow
from nft_ext._common.checks import fail, instance, module, torch_device
from nft_ext._common.file_claim import claimed
from nft_ext._common.files import check_distinct, check_writable_target
from nft_ext._common.logits import logits_of
from nft_ext.data import ImageSet
from nft_ext.device import NVMDevice
from nft_ext.methods import Method
from nft_ext.methods.task import Criterion, Forward, Select
from nft_ext.training import ranks as processes
from nft_ext.training.arguments import check_arguments
from nft_ext.training.batches import Batches
from nft_ext.training.checkpoint import describe_model, versions
from nft_ext.training.configuration import RANKS_OWN, configuration
from nft_ext.training.history import History
from nft_ext.training.loop import Loop
from nft_ext.training.outputs import Outputs
from nft_ext.training.randomness import own_randomness
from nft_ext.training.ranks import Ranks
from nft_ext.training.recipe import Recipe, with_memory_format
from nft_ext.training.state import StateFile
from nft_ext.training.step import Gradient
from nft_ext.training.task_arguments import task_arguments
from nft_ext.training.task_batches import TaskBatches
from nft_ext.training.task_selection import Metric


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
    criterion: Criterion | None = None,
    forward: Forward | None = None,
    output: Select | None = None,
    metric: Metric | None = None,
    higher_is_better: bool | None = None,
    collate: Callable[[list[Any]], Any] | None = None,
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

    **Best epoch.** After each epoch, `validation_chips` chips at the method's sigma measure the accuracy on
    `validation`. The highest accuracy wins, then the lowest cross-entropy, then the earliest epoch. These chips are the
    same after every epoch. They are in the "selection" key domain, so no training and no evaluation uses them. A method
    without noise is judged by its plain accuracy. `fit` sees no test set.

    **Randomness.** Batch order, noise, classifiers and augmentation follow from `seed` and the step. torch's global
    generators are restored at the end. On the CPU, equal seeds and thread counts give the same weights bit for bit.
    On CUDA, some torch kernels add in varying order.

    **Resuming.** With `state`, call `fit` again with the same arguments: a killed training continues from its last save
    and ends as if it had never stopped. This holds bit for bit under the conditions above, if data and augmentation
    draw only from torch's generators. A finished training returns at once. Only the first call uses `model`'s weights.
    Another network, method, recipe, data set or augmentation is refused. Other people's classes and functions count by
    their code, and objects by their attributes, so an augmentation must not keep counters.

    **Several processes.** Under torchrun all ranks call `fit` with the same arguments. Each takes its share of every
    batch, and the gradients are summed, so all ranks have the same weights. The first rank writes the files. All ranks
    use the same chips as a single process. Without BatchNorm and augmentation the result equals that of one process, up
    to rounding. BatchNorm normalises over each rank's share and averages the running statistics.

    **Any task.** Batches may be tuples or mappings of tensors. `criterion`, `forward` and `output` are those of
    `Method.loss`, which gets the whole batch. Under the cross-entropy the accuracy judges an epoch; under a criterion
    its lowest loss does, or `metric`. The loss is the mean over batches, weighted by their examples. A loader makes its
    own batches: `batch_size`, `accumulate` and several processes are refused with it.
    docs/guide/training_any_task.md has examples.

    Ctrl-C ends the training. The history so far is returned, with `History.interrupted` set.

    Args:
        model: a plain module, `[B, C, H, W] -> [B, classes]` unless the task is another one. It stays unchanged.
        method: a `nft_ext.methods` object.
        train, validation: an ImageSet, a pair of tensors, or a map-style Dataset of (image, label). For other tasks
            also a tuple of tensors, a map-style data set of tuples or mappings, or a list of such items; or a
            DataLoader or another iterable of batches that has a length.
        recipe: epochs, batch size, optimizer, precision, ...; None: `Recipe()`. See also `Recipe.paper`.
        nvm: the device model; its sigma is replaced by the method's. None: `NVMDevice()`.
        device: torch device to train on. None: the model's.
        augment: maps a batch of images `[B, C, H, W]` to another one, with torch's generators. For other tasks: the
            first entry of a tuple.
        criterion: `criterion(output, batch)`, the mean loss of a batch, a scalar. A loss of torch, such as
            `nn.MSELoss()`, gets the output and the target. None: cross-entropy.
        forward: `forward(model, batch)`, the model's output. None: of a mapping the model gets the keys that its
            forward names, never labels, label, targets, target; of a tuple all entries but the last.
        output: what the criterion gets of the model's output, a name or a function. None: see `Method.loss`.
        metric: `metric(output, batch)`, two tensors (numerator [B], denominator [B]) of the model's whole output. The
            ratio of their sums over the validation examples judges an epoch; at equal ratios the lower loss.
        higher_is_better: whether a larger metric is better. None: True.
        collate: makes a batch of a list of items, for map-style data sets. None: tensors and numbers are stacked.
        validation_chips: number of chips that judge an epoch, always in float32.
        keep: "best": return the best epoch. "last": return the last epoch that ended. "published": the rule of the
            published code of OVF and IRS: after each epoch one pass over `validation`, with a new chip per 128 images;
            the highest accuracy wins, then the earliest epoch. It does not use `validation_chips`.
        compile: run the model's training forward and backward through torch.compile. Validation stays eager.
        chip_per_rank: under torchrun, every rank programs its own chips.
        progress: True: show progress. None: on a terminal only. False: never.
        log: CSV file, rewritten after each epoch.
        tensorboard: folder for TensorBoard event files. Needs the package tensorboard.
        checkpoint: file for the best epoch's weights, rewritten at each better epoch.
        meta: further entries of the checkpoint's metadata. `fit` itself writes model (arguments of
            `nft_ext.models.build`, None for another model), method, device, recipe, seed, validation_chips, versions,
            epoch, validation and dataset (the first part of an ImageSet's name).
        state: file for the state of the training. `fit` continues from it if it exists.
        resume: False: start over even if the state exists.
        save_every: seconds between saves of the state within an epoch; 0 saves after every step. The state is also
            saved after each epoch.
        changes: changed attributes of the recipe, for example `epochs=20, lr=1e-2`.

    Returns:
        The plain model of the best epoch, and one row of figures per epoch.

    Raises:
        TypeError, ValueError, FileNotFoundError: before any training, a bad argument, or a state that is corrupt or has
            another configuration (the message shows the difference).
        ImportError: `tensorboard` is given but the package is not installed.
        RuntimeError: another thread of this process is inside `fit`. Both would share torch's generators.
        BlockingIOError: another training writes one of the files.
        NonFiniteLoss: the loss became NaN or infinite; its `.history` holds the last good weights.
        OSError: a file could not be written. The message names it, and an older file is kept.
    """
    sizes_given = "batch_size" in changes or getattr(recipe, "batch_size", Recipe.batch_size) != Recipe.batch_size
    recipe = _checked_recipe(recipe).replace(**changes)
    module("model", model)
    instance("method", method, Method, "an object of nft_ext.methods")
    check_arguments(
        seed=seed,
        nvm=nvm,
        augment=augment,
        validation_chips=validation_chips,
        keep=keep,
        switches={"compile": compile, "chip_per_rank": chip_per_rank, "resume": resume},
        progress=progress,
        files={"log": log, "tensorboard": tensorboard, "checkpoint": checkpoint, "state": state},
        meta=meta,
        save_every=save_every,
    )
    seed, validation_chips = int(seed), int(validation_chips)  # numpy's integers are no JSON
    # "best" is not recorded, so states and checkpoints from before this option stay valid.
    kept = {} if keep == "best" else {"keep": keep}
    parameter = next(model.parameters(), None)
    if parameter is None:
        fail("model", "must have parameters to train", type(model).__name__)
    device = processes.place(torch_device("device", device) if device is not None else parameter.device)
    named = {"dataset": train.name.split("/")[0]} if isinstance(train, ImageSet) else {}
    asked = task_arguments(
        train,
        validation,
        method=method,
        recipe=recipe,
        keep=keep,
        collate=collate,
        metric=metric,
        higher_is_better=higher_is_better,
        sizes_given=sizes_given,
        criterion=criterion,
        forward=forward,
        output=output,
    )
    if asked is None:
        train, validation = Batches("train", train), Batches("validation", validation)
    else:
        train, validation = asked.train, asked.validation
    warn_where_slow(recipe.precision, device)
    nvm = None if method.sigma is None else (NVMDevice() if nvm is None else nvm).replace(sigma=method.sigma)

    ranks = processes.joined(device)
    _check_shares(recipe, train, validation, ranks)
    files = {"state": state, "checkpoint": checkpoint, "log": log}
    with own_randomness(seed, device), _claimed(files if ranks.first else {}):
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
        prepared = method.prepare(model, nvm) if asked is None else asked.prepared(method, model, nvm)
        prepared = with_memory_format(prepared.to(device), recipe.memory_format)
        keeper = None
        if state is not None or ranks.size > 1:
            run = configuration(
                prepared,
                method,
                nvm,
                recipe,
                {"train": train, "validation": validation},
                augment,
                None if asked is None else asked.given,
                seed=seed,
                validation_chips=validation_chips,
                compile=compile,
                device=device.type,
                ranks=ranks.size,
                chip_per_rank=chip_per_rank,
                **kept,
            )
            shared = {name: value for name, value in run.items() if name not in RANKS_OWN}
            ranks.agree_with_first("fit", shared | {"state": None if state is None else str(state)})
            ranks.share_weights(prepared)
            keeper = (
                None
                if state is None
                else StateFile(state, run if ranks.first else shared, resume, save_every, writes=ranks.first)
            )
        history = History(with_memory_format(method.finish(prepared), torch.contiguous_format).eval())
        if asked is None:
            _check_fit(history.model, train, validation, device)
        else:
            history.higher_is_better = asked.judge.higher_is_better
            asked.check_fit(history.model, recipe, augment, device)
        if compile:
            prepared.compile()
        task, judge = (None, None) if asked is None else (asked.task, asked.judge)
        gradient = Gradient(prepared, method, recipe, train, augment, seed, ranks, chip_per_rank, task)
        loop = Loop(gradient, validation, validation_chips, keep, compile, history, judge)
        loop.run(progress if ranks.first else False, outputs, keeper)
    return history


@contextlib.contextmanager
def _claimed(files: Mapping[str, str | PathLike | None]) -> Iterator[None]:
    """Checks the output files, and keeps other trainings from writing them meanwhile."""
    check_distinct(files)
    given = {name: check_writable_target(name, path) for name, path in files.items() if path is not None}
    with contextlib.ExitStack() as stack:
        for name, path in given.items():
            stack.enter_context(claimed(name, path))
        yield


def _checked_recipe(recipe: Recipe | None) -> Recipe:
    if recipe is not None and not isinstance(recipe, Recipe):
        fail("recipe", "must be a nft_ext.training.Recipe", type(recipe).__name__, kind=TypeError)
    return recipe or Recipe()


def _check_shares(recipe: Recipe, train: Batches | TaskBatches, validation: Any, ranks: Ranks) -> None:
    """Refuses sizes that do not give every rank the same number of images per batch, at least two."""
    if ranks.size == 1:
        return
    for data in (train, validation):
        if isinstance(data, TaskBatches) and data.loader:
            rule = "must be a map-style data set under several ranks, which share the examples of a batch"
            fail(data.argument, rule, type(data.items).__name__, TypeError)
    if recipe.batch_size % ranks.size or recipe.batch_size < 2 * ranks.size:
        fail(
            "batch_size",
            f"must be a multiple of the number of ranks, {ranks.size}, with at least two images per rank",
            recipe.batch_size,
        )
    if len(train) < 2 * ranks.size:
        fail("train", f"must hold at least two images per rank, {2 * ranks.size}", len(train))


def _check_fit(plain: nn.Module, train: Batches, validation: Batches, device: torch.device) -> None:
    """Runs one image through the plain model and refuses images or labels that do not fit it."""
    for data in (train, validation):
        image, _ = data.take(torch.tensor([0]))
        try:
            with torch.no_grad():
                logits = logits_of(plain(image.to(device)))
        except RuntimeError as error:
            fail(data.argument, f"must hold images that the model accepts ({error})", f"shape {list(image.shape[1:])}")
        if logits.dim() != 2 or len(logits) != 1 or logits.shape[1] < 2:
            rule = "must give logits [B, classes] of at least two classes"
            fail("model", rule, f"shape {list(logits.shape)} for one image")
        data.check_classes(logits.shape[1])
