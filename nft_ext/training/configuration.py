"""The configuration that determines the result of a training, as JSON."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from nft_ext._common.differences import Difference, differences
from nft_ext._common.network_identity import network_differences, network_identity, tied
from nft_ext._common.tensor_hash import tensor_hash
from nft_ext._common.value_identity import Describer
from nft_ext.device import NVMDevice
from nft_ext.methods import Method
from nft_ext.nn.chip_inputs import tensors_of
from nft_ext.ops.build_info import info
from nft_ext.training.batches import Batches
from nft_ext.training.checkpoint import versions
from nft_ext.training.randomness import own_randomness
from nft_ext.training.recipe import Recipe
from nft_ext.training.task_batches import TaskBatches
from nft_ext.version import NOISE

# Fields that states before 0.3 lack. Such a state continues, with a warning that names them.
LATER = ("network", "frozen", "tied", "classes", "augment_code", "items")
RANKS_OWN = ("augment_code", "items", "task")  # may differ between ranks, for example by a global that holds the rank
SAMPLE = 16  # items of a data set that are read to identify it


def configuration(
    prepared: nn.Module,
    method: Method,
    nvm: NVMDevice | None,
    recipe: Recipe,
    data: Mapping[str, Batches | TaskBatches],
    augment: Callable[[Tensor], Tensor] | None,
    task: Mapping[str, Any] | None = None,
    **others: Any,
) -> dict[str, Any]:
    """Everything that determines the result, except the initial weights. A state continues only under the same one.

    Data in memory count by their SHA-256. Other data count by the code and the attributes of their data set, and by a
    few of their items. Callables count by their code, closures and attributes. task: criterion, forward and the other
    arguments of a training that is not on images and labels.
    """
    describe = Describer()
    network, unread = network_identity(prepared)
    later = {
        "network": network,
        "frozen": [name for name, parameter in prepared.named_parameters() if not parameter.requires_grad],
        "tied": tied(prepared),
        "classes": {"method": _classes(method, describe), "recipe": describe(type(recipe)), "nvm": describe(type(nvm))},
        "augment_code": describe(augment),
        **({} if task is None else {"task": {name: describe.short(value) for name, value in task.items()}}),
        "items": {name: items_of(batches, describe) for name, batches in data.items() if batches.tensors is None},
    }
    return {
        "method": {name: describe(value) for name, value in method.config().items()},
        "nvm": None if nvm is None else nvm.describe(),
        "recipe": dataclasses.asdict(recipe),
        "model": {name: f"{_short(t.dtype)}{list(t.shape)}" for name, t in prepared.state_dict().items()},
        "data": {name: fingerprint(batches) for name, batches in data.items()},
        "augment": None if augment is None else _name(augment),
        "noise": NOISE,
        **others,
        **later,
        "unread": sorted(unread | describe.unread),
    }


def configuration_differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> tuple[list[Difference], list[str]]:
    """What differs between a stored configuration and the present one, and the fields that the file does not record.

    Both are as JSON returns them. `here` may lack RANKS_OWN, which only the first rank compares.
    """
    unrecorded = [name for name in LATER if name in here and name not in there]
    one = {name: value for name, value in there.items() if name in here or name not in RANKS_OWN}
    other = {name: value for name, value in here.items() if name not in unrecorded}
    found = []
    if "network" in one and "network" in other:
        found = network_differences(one.pop("network"), other.pop("network"))
    for each in (one, other):
        each.pop("unread", None)
    return found + differences(one, other), unrecorded


def environment() -> dict[str, Any]:
    """Versions and machine settings that can change the last bits of a result."""
    return versions() | {
        "threads": torch.get_num_threads(),
        "instruction_set": info()["instruction_set"],
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "tf32_convolutions": torch.backends.cudnn.allow_tf32,
    }


def fingerprint(data: Batches | TaskBatches) -> dict[str, Any]:
    """Identifies a data set, by its content if it is in memory."""
    if data.tensors is None:
        return {"images": len(data), "type": type(data.items).__name__}
    return {"images": len(data), "sha256": tensor_hash((None, tensor) for tensor in data.tensors)}


def items_of(data: Batches | TaskBatches, describe: Describer) -> dict[str, Any]:
    """Identifies a data set that is not in memory: its code, its attributes, and the content of a few of its items."""
    return {"attributes": describe.short(data.items), "sample": _sample(data)}


def _sample(data: Batches | TaskBatches) -> str | None:
    """A hash over items spread over the data set. None if reading an item twice gives two results."""
    indices = torch.arange(len(data)) if len(data) <= SAMPLE else torch.linspace(0, len(data) - 1, SAMPLE).long()
    found = set()
    for _ in range(2):
        with own_randomness(0, torch.device("cpu")), _seeded():
            tensors = data.sample(indices) if isinstance(data, TaskBatches) else tensors_of(data.take(indices))
            found.add(tensor_hash((None, tensor) for tensor in tensors))
    return found.pop() if len(found) == 1 else None


@contextmanager
def _seeded() -> Iterator[None]:
    """Seeds the generators of Python and NumPy, and restores them at the end."""
    before, arrays = random.getstate(), np.random.get_state()  # noqa: NPY002 (what the items of others draw from)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(before)
        np.random.set_state(arrays)  # noqa: NPY002


def _classes(method: Method, describe: Describer) -> list[Any]:
    """The classes of a method and of the methods inside it."""
    inner = [getattr(method, field.name) for field in dataclasses.fields(cast(Any, method))]
    return [describe(type(method)), *(_classes(one, describe) for one in inner if isinstance(one, Method))]


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _name(augment: Callable) -> str:
    # A custom repr shows the object's options. The default repr shows an address, which changes from run to run.
    text = repr(augment)
    return getattr(augment, "__qualname__", type(augment).__qualname__) if " at 0x" in text else text
