"""How many chips share a forward pass: what fits, and whether the model allows more than one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nft_ext._common.checks import fail
from nft_ext._common.logits import logits_of

PROBE_IMAGES = 8
# Rows (chips x images) of a pass that fill the machine: more would buy memory traffic, not speed. CPU: VGG-8 at widths
# 0.125 and 0.25 took 10 to 30 % longer an image with 256 rows than with 128 on two AVX2 cores; 64 were no better. GPU:
# by reasoning.
ROWS = {"cpu": 128, "cuda": 4096}
# Images of a batch, where none is given.
IMAGES = {"cpu": 128, "cuda": 256}
MEMORY_SHARE = 0.25  # of the free memory
LIVE_OUTPUTS = 4  # a layer's input, output, unfolded patches, and one more for a residual branch
# Two ways of batching the same products differ by rounding, far below; a model that mixes rows of
# the batch differs by the noise itself, far above. Relative to the largest logit.
SAME = {"float32": 1e-3, "bfloat16": 5e-2}

# forward(inputs [b, ...], draws) -> logits [len(draws), b, C]
Forward = Callable[[Tensor, list[int]], Tensor]


@dataclass(frozen=True)
class Probe:
    """What one small pass tells: the model's classes, and bytes of its largest output a row."""

    classes: int
    row_bytes: int


def probe(model: nn.Module, forward: Forward, inputs: Tensor) -> Probe:
    """Runs one chip on a few images.

    Raises TypeError or ValueError if the model does not return logits [images, classes].
    """
    rows = min(PROBE_IMAGES, len(inputs))
    largest = 0

    def measure(module, args, output):
        nonlocal largest
        if torch.is_tensor(output):
            largest = max(largest, output.numel() * output.element_size())

    hooks = [m.register_forward_hook(measure) for m in model.modules()]
    try:
        logits = forward(inputs[:rows], [0])
    finally:
        for hook in hooks:
            hook.remove()
    return Probe(classes=logits.shape[2], row_bytes=-(-largest // rows))


def split_chips(output, chips: int, images: int) -> Tensor:
    """A model's output as logits [chips, images, C].

    Raises TypeError or ValueError if it is not chip-major logits [chips * images, C].
    """
    output = logits_of(output)
    if output.ndim != 2 or len(output) != chips * images or output.shape[1] == 0:
        fail("model", f"must return logits [images, classes], here [{chips * images}, C]", list(output.shape))
    return output.reshape(chips, images, -1)


def images_that_suit(device: torch.device) -> int:
    """batch_size="auto"."""
    return IMAGES.get(device.type, IMAGES["cpu"])


def chips_that_fit(runs: int, batch: int, row_bytes: int, weight_bytes: int, device: torch.device) -> int:
    """chips_per_pass="auto", without measuring anything.

    As many chips as keep the rows of a pass, chips * batch, within ROWS, and their largest layer
    (`LIVE_OUTPUTS` times the largest output, plus its programmed weights, `weight_bytes` a chip)
    within a quarter of the free memory; then evened out, so that the last pass is not nearly empty.
    """
    by_rows = ROWS.get(device.type, ROWS["cpu"]) // batch
    by_memory = MEMORY_SHARE * free_memory(device) / (batch * row_bytes * LIVE_OUTPUTS + weight_bytes + 1)
    chips = max(1, min(runs, by_rows, int(by_memory)))
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


def why_one_chip(forward: Forward, inputs: Tensor, precision: str) -> str | None:
    """Why several chips must not share a pass of this model, or None if they may.

    Compares chips 0 and 1 in one pass with a pass of each, on a few images.
    """
    inputs = inputs[:PROBE_IMAGES]
    apart = torch.cat([forward(inputs, [0]), forward(inputs, [1])])
    try:
        together = forward(inputs, [0, 1])
    except (RuntimeError, ValueError, IndexError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        return f"two chips in one pass fail: {first_line}"
    if together.shape != apart.shape:
        return "two chips in one pass give logits of another shape"
    off = difference(together, apart)
    if not off <= SAME[precision]:  # NaN is no agreement
        return f"two chips in one pass differ from two passes by {off:.1e} of the largest logit"
    return None


def difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference of logits of one shape, relative to the largest expected one."""
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-30))
