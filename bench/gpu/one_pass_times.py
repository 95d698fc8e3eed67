"""Times products with the present NFT_EXT_ONE_PASS. Stage `one_pass` starts one process per value."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from typing import Any

import torch

from bench.gpu import timing
from bench.gpu.child import Task
from nft_ext.device.model import NVMDevice
from nft_ext.ops import build_info, operators
from nft_ext.ops.functional import Crossbar, device_table
from nft_ext.ops.keys import noise_key

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DIRECTIONS = ("forward", "input_gradient")
COLUMNS = (16, 32, 64, 128, 192, 256, 384, 512, 768, 1024, 2048)  # per chip
# (outputs, inputs, kernel, side of the image): a wide linear layer, middle and last convolutions of ResNet-18.
SHAPES = ((1024, 1024, None, 1), (128, 128, 3, 8), (512, 512, 3, 4))
ROUNDS, CALLS = 7, 5


def product(shape: tuple, images: int, direction: str, dtype: torch.dtype) -> Callable[[], Any]:
    """One call of the operator on one chip: forward, or the gradient of its input."""
    outputs, inputs, kernel, side = shape
    nvm, size = NVMDevice(), () if kernel is None else (kernel, kernel)
    weight = torch.randn(outputs, inputs, *size, device="cuda")
    step = operators.ops.weight_step(weight, nvm.weight_bits)
    codes = operators.ops.quantize(weight, step, nvm.weight_bits)
    table, key = device_table(nvm, weight.device), noise_key(0, device=weight.device)
    bar = Crossbar(weight, codes, step, table, key, 1, nvm.operator_spec())
    image = () if kernel is None else (side, side)
    x, grad = (torch.randn(images, channels, *image, device="cuda", dtype=dtype) for channels in (inputs, outputs))
    if kernel is not None and dtype != torch.float32:  # the layout for tensor cores
        x, grad = (t.contiguous(memory_format=torch.channels_last) for t in (x, grad))
    convolution = () if kernel is None else ([1, 1], [kernel // 2] * 2, [1, 1], 1)
    ops = operators.ops
    forward, backward = ops.noisy_conv2d, ops.noisy_conv2d_backward
    if kernel is None:
        forward, backward = ops.noisy_linear, ops.noisy_linear_backward
    if direction == "forward":
        return lambda: forward(x, bar.weight, None, *bar[1:], *convolution, True)
    return lambda: backward(grad, x, *bar, *convolution, True, 1)


def seconds_per_call(call: Callable[[], Any]) -> float:
    """The median over replays of a CUDA graph of several calls, which excludes host time."""
    replay = timing.graphed(lambda: [call() for _ in range(CALLS)])
    return (
        statistics.median([timing.timed(replay, 1) for _ in range(ROUNDS + 1)][1:]) / CALLS
    )  # the first replay warms up


def points() -> Iterator[tuple[str, str, int, int]]:
    """(direction, type, number of the shape, columns per chip) of every time."""
    for direction in DIRECTIONS:
        for dtype in DTYPES:
            for number, shape in enumerate(SHAPES):
                yield from ((direction, dtype, number, columns) for columns in COLUMNS if columns >= shape[3] ** 2)


@torch.no_grad()
def run(task: Task) -> None:
    torch.manual_seed(0)
    found: list[dict[str, Any]] = []
    for direction, dtype, number, columns in points():
        if task.left() < 1.0:
            break
        shape = SHAPES[number]
        seconds = seconds_per_call(product(shape, columns // shape[3] ** 2, direction, DTYPES[dtype]))
        found.append(
            {"direction": direction, "dtype": dtype, "shape": list(shape), "columns": columns, "seconds": seconds}
        )
        task.save({"rule": build_info.one_pass(), "points": found})
