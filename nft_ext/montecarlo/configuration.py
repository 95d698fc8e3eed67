"""The configuration that fixes the figures of a chip. A journal and all ranks must have the same one.

Fields have three kinds. "fixed": another value is another experiment, and is refused. "noted": another value changes
figures only by rounding. "recorded": the value does not affect the tallies of a chip.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import nn

from nft_ext._common.network_identity import DEVICE, STATE, network_identity
from nft_ext._common.tensor_hash import tensor_hash
from nft_ext._common.value_identity import Describer
from nft_ext.device import NVMDevice
from nft_ext.montecarlo.execution.arguments import Arguments
from nft_ext.montecarlo.tasks.batches import batch_hash
from nft_ext.montecarlo.tasks.examples import Examples
from nft_ext.montecarlo.tasks.task import Task
from nft_ext.nn import NoisyLayer
from nft_ext.nn.base import matrices_by_path, noisy_layers_by_path
from nft_ext.nn.weight_level import WeightLevelLayer
from nft_ext.ops.build_info import info
from nft_ext.version import NOISE

DIGITS = 16  # hex digits kept of a hash
SETTING = (bool, int, float, str, tuple, type(None))
Identity = tuple[dict[str, dict[str, Any]], set[str]]  # of `network_identity`
NO_SETTINGS = ("training", "name", "stream", *STATE)


def configuration(
    model: nn.Module,
    identity: Identity,
    examples: Examples,
    task: Task,
    asked: Arguments,
    hardware: str,
    channels_last: bool = False,
) -> dict[str, dict[str, Any]]:
    """The header of a journal.

    The number of chips and the target are not part of it, so a file can be continued to more chips. `Journal.settled`
    holds the size of slices.

    Args:
        model: with noisy layers.
        identity: `identity_of(model)` before its first forward, which can change counters and fill caches.
        examples: the data as read.
        task: what is summed over them.
        asked: the checked arguments.
        hardware: name of the torch device.
        channels_last: whether the model sees images in that memory format.

    Returns:
        {"fixed": ..., "noted": ..., "recorded": ...}, each field -> JSON value. "older": {field: its value in files
        that earlier versions wrote}. "unread": types of values in the network that nobody can compare.
    """
    of_task, unread_there = _task(task, asked)
    return {
        "fixed": {
            **network_fields(model, identity, asked.seed, asked.sigma),
            **_data(model, examples),
            **of_task,
            "protocol": asked.protocol,
            "precision": asked.precision,
        },
        "noted": {
            "batch_size": asked.batch_size,
            "chips_per_pass": asked.chips_per_pass,
            "channels_last": channels_last,
            "hardware": hardware,
            **machine_fields(),
        },
        "recorded": {"metrics": sorted(asked.metrics)},
        "older": {"network": network_hash(model)},
        "unread": dict.fromkeys(sorted(identity[1] | unread_there), "network"),
    }


def network_fields(model: nn.Module, identity: Identity, seed: int, sigma: float | None) -> dict[str, Any]:
    """The "fixed" fields of a network on the chips of `seed`, without its data."""
    return {
        "network": identity[0],
        "weights": tensor_hash((n, t) for n, t in model.state_dict().items() if torch.is_tensor(t))[:DIGITS],
        "sigma": _sigma(model, sigma),
        "devices": _devices(model),
        "streams": {name: matrix.stream for name, matrix in matrices_by_path(model).items()},
        "noise_off": [name for name, layer in noisy_layers_by_path(model).items() if not layer.noise_enabled],
        "seed": seed,
        "noise": NOISE,
        **_layouts(model),
    }


def machine_fields() -> dict[str, Any]:
    """The "noted" fields of versions and machine settings."""
    built = info()
    return {
        "threads": torch.get_num_threads(),
        "nft_ext": str(built["nft_ext"]),
        "torch": str(built["torch"]),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "tf32_convolutions": torch.backends.cudnn.allow_tf32,
        "instruction_set": str(built["instruction_set"]),
    }


def _data(model: nn.Module, examples: Examples) -> dict[str, Any]:
    """Shape and hash of the data. Inputs with class labels have those of earlier versions."""
    if (pair := examples.pair) is not None:
        inputs, labels = pair
        if inputs.is_floating_point():
            inputs = inputs.to(next(model.parameters()).dtype)
        digest = tensor_hash([("inputs", inputs), ("labels", labels)])[:DIGITS]
        return {"images": list(inputs.shape), "data": digest}
    return {"images": examples.sizes, "data": batch_hash(examples.batches, DIGITS)}


def _task(task: Task, asked: Arguments) -> tuple[dict[str, Any], set[str]]:
    """The metrics and the forward, if they are others than those of every earlier version; and what nobody can read."""
    found: dict[str, Any] = {} if task.identity is None else {"metrics": task.identity}
    describe = Describer()
    if asked.forward is not None:
        found["forward"] = describe.short(asked.forward)
    return found, describe.unread | task.unread


def identity_of(model: nn.Module) -> Identity:
    """The identity of a network without devices, names and streams of layers, which have fields of their own."""
    return network_identity(model, leave_out=DEVICE)


def network_hash(model: nn.Module) -> str:
    """What files before 0.3 hold in place of the network's identity.

    The first 16 hex digits of a hash over every module's name, type and public numbers, strings and tuples.
    """
    digest = hashlib.sha256()
    for name, module in model.named_modules():
        settings = {
            key: value
            for key, value in vars(module).items()
            if isinstance(value, SETTING) and not key.startswith("_") and key not in NO_SETTINGS
        }
        if isinstance(module, NoisyLayer):
            settings["scaled"] = False  # was an attribute of every noisy layer under evaluation
        digest.update(f"{name} {type(module).__name__} {sorted(settings.items(), key=lambda item: item[0])}\n".encode())
    return digest.hexdigest()[:DIGITS]


def _sigma(model: nn.Module, sigma: float | None) -> float | dict[str, float]:
    """The sigma used: one number, or layer -> number if layers differ."""
    values = {name: layer.nvm.sigma if sigma is None else sigma for name, layer in noisy_layers_by_path(model).items()}
    return values if len(set(values.values())) > 1 else next(iter(values.values()))


def _layouts(model: nn.Module) -> dict[str, Any]:
    """{"layouts": how matrices are stored}, of those whose layout decides which weights share a step."""
    found = {}
    for name, layer in noisy_layers_by_path(model).items():
        if isinstance(layer, WeightLevelLayer):
            for part, matrix in layer.matrices_by_name(name).items():
                if layer.nvm.operator_scaling(*matrix.stored) != layer.nvm.operator_scaling():
                    found[part] = list(matrix.stored)
    return {"layouts": found} if found else {}


def _devices(model: nn.Module) -> dict[str, Any]:
    """The device without sigma: one for all layers, or layer -> device if layers differ."""
    devices = {}
    for name, layer in noisy_layers_by_path(model).items():
        devices[name] = {key: value for key, value in layer.nvm.describe().items() if key != "sigma"}
        if type(layer.nvm) is not NVMDevice:  # a class of other people may give other conductances
            devices[name]["class"] = Describer()(type(layer.nvm))
    first = next(iter(devices.values()))
    return devices if any(device != first for device in devices.values()) else first
