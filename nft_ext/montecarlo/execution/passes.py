"""Decides how many chips share a forward pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nft_ext._common.checks import fail
from nft_ext._common.logits import logits_of
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

# forward(inputs [b, ...], draws) -> logits [len(draws), b, C]
Forward = Callable[[Tensor, list[int]], Tensor]


@dataclass(frozen=True)
class Probe:
    """Results of one small pass.

    Attributes:
        classes: number of the model's classes.
        row_bytes: bytes per image of the largest output of a layer.
        rows: rows per image that a Linear multiplies at most, such as the tokens of a text; at least 1.
        logits: [images, C] of chip 0.
    """

    classes: int
    row_bytes: int
    rows: int
    logits: Tensor


def probe(model: nn.Module, forward: Forward, inputs: Tensor) -> Probe:
    """Runs one chip on a few images.

    Raises:
        TypeError, ValueError: the model does not return logits [images, classes] of at least two classes.
    """
    images = min(PROBE_IMAGES, len(inputs))
    largest, multiplied = 0, images

    def measure(module, args, output):
        nonlocal largest, multiplied
        if torch.is_tensor(output):
            largest = max(largest, output.numel() * output.element_size())
            if isinstance(module, nn.Linear) and output.dim() and output.shape[-1]:
                multiplied = max(multiplied, output.numel() // output.shape[-1])

    # Nothing calls the containers of a fused model, and they refuse hooks.
    hooks = [m.register_forward_hook(measure) for m in model.modules() if not isinstance(m, frozen.Module)]
    try:
        logits = forward(inputs[:images], [0])
    finally:
        for hook in hooks:
            hook.remove()
    if logits.shape[2] < 2:  # every image would count as correct
        fail("model", "must return logits of at least two classes", f"shape {[images, *logits.shape[2:]]}")
    return Probe(logits.shape[2], -(-largest // images), -(-multiplied // images), logits[0])


def split_chips(output, chips: int, images: int) -> Tensor:
    """Reshapes a model's output [chips * images, C], chip-major, to logits [chips, images, C].

    Raises:
        TypeError, ValueError: the output has another type or shape.
    """
    output = logits_of(output)
    if output.ndim != 2 or len(output) != chips * images or output.shape[1] == 0:
        fail("model", f"must return logits [images, classes], here [{chips * images}, C]", list(output.shape))
    return output.reshape(chips, images, -1)


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


def difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference between two logit tensors of equal shape, relative to the largest expected logit."""
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-30))
