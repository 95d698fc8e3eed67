"""Measures up to how many columns a chip the fused product wins on a CUDA device (`nft-ext tune`)."""

from __future__ import annotations

import datetime
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch

from nft_ext import choice
from nft_ext.ops import operators
from nft_ext._common.checks import fail
from nft_ext.choice import Bounds
from nft_ext.device import NVMDevice
from nft_ext.ops.functional import Crossbar, device_table
from nft_ext.ops.keys import noise_key

COLUMNS = (16, 32, 64, 128, 192, 256, 384, 512, 768, 1024, 2048)
# (outputs, inputs, kernel, side of the image): a wide linear layer, and the middle and the last convolutions of a ResNet-18.
SHAPES = ((1024, 1024, None, 1), (128, 128, 3, 8), (512, 512, 3, 4))
ROUNDS, CALLS = 7, 5


class Point(NamedTuple):
    """One layer at one number of columns a chip, timed both ways, in seconds."""

    shape: int
    columns: int
    fused: float
    library: float


def best_bound(points: Sequence[Point]) -> int:
    """The number of columns up to which to fuse, so that the geometric mean of all points' times is least; of several
    numbers that do equally well, the smallest. 0: never.
    """
    if not points:
        fail("points", "must hold at least one", "none")

    def cost(bound: int) -> float:
        return sum(math.log(p.fused if p.columns <= bound else p.library) for p in points)

    return min((0, *sorted({p.columns for p in points})), key=cost)


def tune(index: int, report: Callable[[str], None] = lambda line: None) -> tuple[Bounds, list[dict[str, Any]]]:
    """Times both ways for every type and direction on CUDA device `index`: (bounds, all points). What was in force is in force
    again afterwards; nothing is kept.
    """
    before = choice.apply(index) or choice.DEFAULT
    bounds, records = _everywhere(0), []
    try:
        with torch.cuda.device(index):
            for direction in choice.DIRECTIONS:
                for dtype in choice.DTYPES:
                    points = list(_points(index, direction, choice.DTYPES[dtype]))
                    bounds[direction][dtype] = best_bound(points)
                    records += [{"direction": direction, "dtype": dtype, **p._asdict(), "shape": list(SHAPES[p.shape])} for p in points]
                    report(f"{direction.replace('_', ' ')}, {dtype}: fused up to {bounds[direction][dtype]} columns a chip")
    finally:
        choice.put(index, before)
    return bounds, records


def keep(index: int, bounds: Bounds, records: list[dict[str, Any]]) -> Any:
    """Writes the bounds to the file that later processes read, and puts them in force here."""
    date = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    written = choice.write(choice.key_of(index), bounds, {"date": date, "points": records})
    choice.apply.cache_clear()
    choice.apply(index)
    return written


def _everywhere(columns: int) -> Bounds:
    return {direction: {dtype: columns for dtype in choice.DTYPES} for direction in choice.DIRECTIONS}


def _points(index: int, direction: str, dtype: torch.dtype) -> Iterator[Point]:
    for number, shape in enumerate(SHAPES):
        positions = shape[3] ** 2
        for columns in COLUMNS:
            if columns < positions:
                continue
            call = _call(shape, columns // positions, direction, dtype)
            choice.put(index, _everywhere(choice.MOST))
            fused = _graph(call)
            choice.put(index, _everywhere(0))
            library = _graph(call)
            yield Point(number, columns, *_seconds([fused, library]))


def _call(shape: tuple, images: int, direction: str, dtype: torch.dtype) -> Callable[[], Any]:
    """One call of the operator, forward or for the gradient of its input, one chip."""
    outputs, inputs, kernel, side = shape
    nvm, size = NVMDevice(), () if kernel is None else (kernel, kernel)
    weight = torch.randn(outputs, inputs, *size, device="cuda")
    step = operators.ops.weight_step(weight, nvm.weight_bits)
    codes = operators.ops.quantize(weight, step, nvm.weight_bits)
    bar = Crossbar(weight, codes, step, device_table(nvm, weight.device), noise_key(0, device=weight.device), 1, nvm.operator_spec())
    image = () if kernel is None else (side, side)
    x, grad = (torch.randn(images, channels, *image, device="cuda", dtype=dtype) for channels in (inputs, outputs))
    if kernel is not None and dtype != torch.float32:  # as those have it who want speed
        x, grad = (t.contiguous(memory_format=torch.channels_last) for t in (x, grad))
    convolution = () if kernel is None else ([1, 1], [kernel // 2] * 2, [1, 1], 1)
    ops = operators.ops
    forward, backward = (ops.noisy_linear, ops.noisy_linear_backward) if kernel is None else (ops.noisy_conv2d, ops.noisy_conv2d_backward)
    if direction == "forward":
        return lambda: forward(x, bar.weight, None, *bar[1:], *convolution, True)
    return lambda: backward(grad, x, *bar, *convolution, True, 1)


@torch.no_grad()
def _graph(call: Callable[[], Any]) -> torch.cuda.CUDAGraph:
    """CALLS calls as one CUDA graph, so that the host's part is not measured."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(CALLS):
            call()
    return graph


def _seconds(graphs: Sequence[torch.cuda.CUDAGraph]) -> list[float]:
    """Medians of interleaved replays, seconds a call."""
    times: list[list[float]] = [[] for _ in graphs]
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for _ in range(ROUNDS + 1):
        for found, graph in zip(times, graphs):
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            found.append(start.elapsed_time(end) * 1e-3 / CALLS)
    return [statistics.median(found[1:]) for found in times]  # the first replay warms up
