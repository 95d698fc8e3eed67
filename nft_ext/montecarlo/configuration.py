"""What fixes the figures of a chip, hashed and named: a journal is continued, and ranks work together, on the same.

Three kinds of fields. "fixed": another value is another experiment, so it is refused. "noted": figures change by
rounding at most. "recorded": plays no part in what is kept of a chip.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, nn

from nft_ext._common.tensor_hash import tensor_hash
from nft_ext.montecarlo.execution.arguments import Arguments
from nft_ext.nn import noisy_layers
from nft_ext.ops.build_info import info
from nft_ext.version import NOISE

DIGITS = 16  # of a hash that are kept
SETTING = (bool, int, float, str, tuple, type(None))
# Set by evaluation, or with fields of their own; int8: only whole models pickled by an older version have it.
NO_SETTINGS = ("training", "name", "stream", "noise_enabled", "int8")


def configuration(
    model: nn.Module, inputs: Tensor, labels: Tensor, asked: Arguments, hardware: str, channels_last: bool = False
) -> dict[str, dict[str, Any]]:
    """The header of a journal. model: noisy. inputs, labels: as read. hardware: where the model is evaluated.
    channels_last: whether it sees images in that layout.

    The number of runs and the target are no part of it: a file can be continued to more chips.
    The size of slices is settled once a file (`Journal.settled`). Code is not hashed: a forward that was rewritten
    without another weight, layer or setting of a layer passes for the same.
    """
    built = info()
    return {
        "fixed": {
            "network": network_hash(model),
            "weights": tensor_hash(model.state_dict().items())[:DIGITS],
            "sigma": _sigma(model, asked.sigma),
            "devices": _devices(model),
            "streams": {name: layer.stream for name, layer in noisy_layers(model).items()},
            "noise_off": [name for name, layer in noisy_layers(model).items() if not layer.noise_enabled],
            "images": list(inputs.shape),
            "data": tensor_hash([("inputs", inputs), ("labels", labels)])[:DIGITS],
            "seed": asked.seed,
            "protocol": asked.protocol,
            "precision": asked.precision,
            "noise": NOISE,
        },
        "noted": {
            "batch_size": asked.batch_size,
            "chips_per_pass": asked.chips_per_pass,
            "channels_last": channels_last,
            "hardware": hardware,
            "threads": torch.get_num_threads(),
            "nft_ext": str(built["nft_ext"]),
            "torch": str(built["torch"]),
            "instruction_set": str(built["instruction_set"]),
        },
        "recorded": {"metrics": sorted(asked.metrics)},
    }


def network_hash(model: nn.Module) -> str:
    """A hash (its first 16 hex digits) over every module's name, type and settings: its public attributes that are
    numbers, words or tuples.
    """
    digest = hashlib.sha256()
    for name, module in model.named_modules():
        settings = {
            key: value
            for key, value in vars(module).items()
            if isinstance(value, SETTING) and not key.startswith("_") and key not in NO_SETTINGS
        }
        digest.update(f"{name} {type(module).__name__} {sorted(settings.items(), key=lambda item: item[0])}\n".encode())
    return digest.hexdigest()[:DIGITS]


def _sigma(model: nn.Module, sigma: float | None) -> float | dict[str, float]:
    """The sigma in force: one number, or layer -> number where they differ."""
    values = {name: layer.nvm.sigma if sigma is None else sigma for name, layer in noisy_layers(model).items()}
    return values if len(set(values.values())) > 1 else next(iter(values.values()))


def _devices(model: nn.Module) -> dict[str, Any]:
    """Device model, sigma left out: of all layers, or layer -> device where they differ."""
    devices = {}
    for name, layer in noisy_layers(model).items():
        devices[name] = {key: value for key, value in layer.nvm.describe().items() if key != "sigma"}
    first = next(iter(devices.values()))
    return devices if any(device != first for device in devices.values()) else first
