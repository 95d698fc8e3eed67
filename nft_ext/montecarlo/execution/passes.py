"""Decides how many chips share a forward pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from nft_ext.nn import frozen

PROBE_IMAGES = 8
# Rows of a pass (chips x images, or x tokens) that fill the machine.
ROWS = {"cpu": 128, "cuda": 4096}
# On the CPU several chips save the fixed cost of a call, and lose once a layer's output leaves the cache. So the bytes
# of the largest output decide there: bench/studies/passes.py measures it. More chips than these save nothing further.
CACHE_BYTES, CHIPS = 4 << 20, 128
IMAGES = {"cpu": 128, "cuda": 256}  # images per batch for batch_size="auto"
MEMORY_SHARE = 0.25  # largest share of the free memory
LIVE_OUTPUTS = 4  # a layer's input, output, unfolded patches, and one more for a residual branch
# Largest difference of equal logits, relative to the largest logit. Rounding differs far less, another result far more.
SAME = {"float32": 1e-3, "bfloat16": 5e-2}


@dataclass(frozen=True)
class Probe:
    """Results of one small pass.

    Attributes:
        row_bytes: bytes per example of the largest output of a layer.
        rows: rows per example that a Linear multiplies at most, such as the tokens of a text; at least 1.
        output: of chip 0.
        batch: its examples.
    """

    row_bytes: int
    rows: int
    output: Any
    batch: Any


def probe(model: nn.Module, call: Callable[[Any], Any], batch: Any, examples: int) -> Probe:
    """Runs one chip on a few examples.

    Args:
        model: the model.
        call: batch -> output.
        batch: the examples.
        examples: their number.
    """
    largest, multiplied = 0, examples

    def measure(module, args, output):
        nonlocal largest, multiplied
        if torch.is_tensor(output):
            largest = max(largest, output.numel() * output.element_size())
            if isinstance(module, nn.Linear) and output.dim() and output.shape[-1]:
                multiplied = max(multiplied, output.numel() // output.shape[-1])

    # Nothing calls the containers of a fused model, and they refuse hooks.
    hooks = [m.register_forward_hook(measure) for m in model.modules() if not isinstance(m, frozen.Module)]
    try:
        output = call(batch)
    finally:
        for hook in hooks:
            hook.remove()
    return Probe(-(-largest // examples), -(-multiplied // examples), output, batch)


def images_that_suit(device: torch.device) -> int:
    """Images per batch for batch_size="auto"."""
    return IMAGES.get(device.type, IMAGES["cpu"])


def chips_that_fit(
    runs: int, batch: int, row_bytes: int, weight_bytes: int, device: torch.device, rows: int = 1
) -> int:
    """Chips per pass for chips_per_pass="auto", without a measurement.

    On CUDA chips * batch * rows stays within ROWS. On the CPU the largest output of a layer stays within CACHE_BYTES,
    and the number within CHIPS. Everywhere the largest layer stays within a quarter of the free memory. The number is
    then evened out over the passes, so that the last pass is nearly full.

    Args:
        runs: number of chips.
        batch: images per batch.
        row_bytes: bytes per image of the largest output; LIVE_OUTPUTS of them count.
        weight_bytes: bytes of programmed weights per chip.
        device: torch device.
        rows: rows per image that a Linear multiplies.
    """
    if device.type == "cuda":
        by_speed = ROWS["cuda"] // (batch * rows)
    else:
        by_speed = min(CHIPS, CACHE_BYTES // max(1, batch * row_bytes))
    by_memory = MEMORY_SHARE * free_memory(device) / (batch * row_bytes * LIVE_OUTPUTS + weight_bytes + 1)
    chips = max(1, min(runs, by_speed, int(by_memory)))
    passes = -(-runs // chips)
    return -(-runs // passes)


def free_memory(device: torch.device) -> int:
    """Bytes free on `device`."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo") as file:
            kibibytes = next(line.split()[1] for line in file if line.startswith("MemAvailable"))
        return 1024 * int(kibibytes)
    except (OSError, StopIteration):
        return 2**31  # not Linux: assume 2 GiB
