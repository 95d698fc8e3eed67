"""Stage `gradients`: dL/dx of single layers on the forward's chips, few rows per chip, 1 and 8 chips per call.

Ours keeps no noisy weights and programs the chips again from their key: in the product if NFT_EXT_ONE_PASS is "always"
(csrc/cuda/one_pass/gradient.h). "programmed" samples into memory and uses a library product. Plain PyTorch keeps the
forward's weights, with all chips stacked along the outputs, so it only multiplies. Each is timed as a CUDA graph, which
is slower for none.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from bench.gpu import layers, timing
from bench.gpu.child import Task
from bench.gpu.floors import Ceilings
from bench.gpu.layers import ELEMENT, Point
from bench.gpu.sampler import NVM
from bench.harness import baselines, checks
from bench.harness.case import Ready, Variant, Work
from nft_ext.ops import build_info
from nft_ext.ops.functional import Crossbar

MOST_ROWS = 256  # per chip
ROUNDING = 2.0  # times the tolerance of checks.close: the sum over chips rounds once more
STREAM = 7


def work(point: Point, draws: str, precision: str) -> Work:
    """Reads every chip's grad and the weight once (two-byte codes); writes dL/dx, summed over chips, once."""
    activations, weight, products = point.shape.counts(point.images)
    x = layers.images(point, precision).numel()
    return Work(
        flops=2.0 * products * point.chips,
        normals=point.chips * weight * baselines.NORMALS[draws],
        bytes=float(ELEMENT[precision] * (x + point.chips * (activations - x)) + 2 * weight),
    )


def input_gradient(p: nn.Conv2d | nn.Linear, grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    if isinstance(p, nn.Linear):
        return grad @ weight
    return torch.ops.aten.convolution_backward(
        grad, x, weight, None, p.stride, p.padding, p.dilation, False, [0, 0], p.groups, [True, False, False]
    )[0]


class Problem:
    """A layer's operands on the GPU: x, the chips' key, and grad [S * B, out, ...] chip-major."""

    def __init__(self, point: Point, draws: str, precision: str) -> None:
        self.point, self.p, self.x = point, layers.layer(point.shape), layers.images(point, precision)
        nvm, ops, weight = NVM[draws], torch.ops.nft_ext, self.p.weight
        step = ops.weight_step(weight, nvm.weight_bits)
        key = torch.cat((torch.zeros(point.chips, 1), torch.arange(point.chips)[:, None]), 1).long().to(weight.device)
        table = torch.from_numpy(nvm.operator_table()).to(weight.device)
        self.bar = Crossbar(
            weight, ops.quantize(weight, step, nvm.weight_bits), step, table, key, STREAM, nvm.operator_spec()
        )
        self.spread = () if isinstance(self.p, nn.Linear) else tuple(self.x.shape[2:])
        assert isinstance(self.p, nn.Linear) or self.p.stride == (1, 1), "a result is as large as its input"
        torch.manual_seed(2)
        grad = torch.randn(point.chips * point.images, weight.shape[0], *self.spread).to(self.x.device, self.x.dtype)
        channels_last = precision == "bf16" and grad.dim() == 4
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.grad = grad.contiguous(memory_format=self.layout)

    def chips(self, dtype: torch.dtype) -> Tensor:
        """[S, *weight.shape]"""
        return torch.ops.nft_ext.program(*self.bar, dtype)

    def ours(self) -> Tensor:
        ops, p = torch.ops.nft_ext, self.p
        if isinstance(p, nn.Linear):
            return ops.noisy_linear_backward(self.grad, self.x, *self.bar, True, 1)[0]
        return ops.noisy_conv2d_backward(
            self.grad, self.x, *self.bar, p.stride, p.padding, p.dilation, p.groups, True, 1
        )[0]

    def stacked_grad(self) -> Tensor:
        """[B, S * out, ...], for one layer with the outputs of all chips."""
        by_chip = self.grad.unflatten(0, (self.point.chips, self.point.images))
        return by_chip.transpose(0, 1).flatten(1, 2).contiguous(memory_format=self.layout)

    def stacked_chips(self) -> Tensor:
        chips = self.chips(self.x.dtype).flatten(0, 1)
        return chips.contiguous(memory_format=self.layout) if chips.dim() == 4 else chips

    def check(self, call: Callable[[], Tensor], run: Callable[[], Tensor]) -> str | None:
        """Checks the gradient on the same chips: of `call` with exact float32 products, and of `run` as timed."""
        weights = self.chips(self.x.dtype).double()
        expected = torch.stack(
            [
                input_gradient(self.p, grad.double(), self.x.double(), w)
                for grad, w in zip(self.grad.chunk(self.point.chips), weights)
            ]
        ).sum(0)
        precision = "bf16" if self.x.dtype == torch.bfloat16 else "fp32"
        linear = isinstance(self.p, nn.Linear)
        library = torch.backends.cuda.matmul if linear else torch.backends.cudnn
        # While timed, the library may use TF32 for float32: then bfloat16's tolerance applies.
        allowed = "bf16" if library.allow_tf32 else precision
        factors = dict.fromkeys(checks.WINOGRAD, 1.0) if linear else checks.WINOGRAD
        with timing.exact_float32():
            exact = call()
        return checks.first(
            checks.close("dL/dx", exact, expected, precision, ROUNDING * factors[precision]),
            checks.close("dL/dx as timed", run(), expected, allowed, ROUNDING * factors[allowed]),
        )


def ready(point: Point, draws: str, precision: str, way: str) -> Ready:
    problem = Problem(point, draws, precision)
    if way == "ours":
        call: Callable[[], Tensor] = problem.ours
    else:
        grad, kept = problem.stacked_grad(), problem.stacked_chips()

        def call() -> Tensor:
            return input_gradient(problem.p, grad, problem.x, kept if way == "kept" else problem.stacked_chips())

    run = timing.graphed(call)
    return Ready(run, lambda: problem.check(call, run))


def variants(point: Point) -> list[Variant]:
    found = []
    for precision in ("bf16", "fp32"):
        for draws in ("one", "device"):
            for family, way in (("nft", "ours"), ("nft programmed", "programmed"), ("torch", "kept")):
                if way == "kept" and draws == "device":
                    continue  # kept weights cost the same for any number of normals
                make = functools.partial(ready, point, draws, precision, way)
                found.append(Variant(family, draws, make, work(point, draws, precision), precision, "graph", True))
    return found


def points() -> list[Point]:
    return [point for point in layers.points() if point.rows <= MOST_ROWS]


@torch.no_grad()
def run(task: Task) -> None:
    ceilings = Ceilings.of(task.found_by("ceilings"))
    cases = []
    for point in points():
        products = work(point, "none", "bf16").flops / point.chips / 2e6
        cases.append(
            timing.measure_case(
                f"dL/dx of {point.name}", f"{point.chips} x 2 x {products:.1f} M FLOP", variants(point), ceilings, task
            )
            | {"rows_a_chip": point.rows}
        )
        task.save({"cases": cases, "one_pass": build_info.one_pass(), "summary": f"{len(cases)} layers and sizes"})
