"""Stage `layers`: forwards of single layers without gradients, several rows per chip, 1 and 8 chips per call.

Ours follows NFT_EXT_ONE_PASS (default auto) and replays a CUDA graph, which is never slower. Plain PyTorch multiplies
all chips at once: their weights, stacked along the outputs, are one larger layer.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from bench.cpu.layers import SHAPES, Shape
from bench.gpu import plain, timing
from bench.gpu.child import Task
from bench.gpu.floors import Ceilings
from bench.gpu.sampler import NVM
from bench.harness import baselines, checks
from bench.harness.case import Ready, Variant, Work
from nft_ext.ops import build_info
from nft_ext.ops.functional import Crossbar, conv2d_product, linear_product

# (shape, images): 16 rows per chip at one image of conv2d-512x4, 64 of conv2d-256x8, 1024 of conv2d-64x32
SIZES = {"linear-8192x1024": (1, 32, 256), "conv2d-512x4": (1, 16), "conv2d-256x8": (1, 4), "conv2d-64x32": (1,)}
CHIPS = (1, 8)
ELEMENT = {"bf16": 2, "fp32": 4}  # bytes


@dataclasses.dataclass(frozen=True)
class Point:
    """One layer at one size."""

    shape: Shape
    images: int
    chips: int

    @property
    def rows(self) -> int:
        """Rows of the product that each chip sees."""
        return self.images * (1 if self.shape.is_linear else (self.shape.sizes[4] // self.shape.sizes[3]) ** 2)

    @property
    def name(self) -> str:
        return f"{self.shape.name}, {self.rows} rows, {self.chips} chip{'s' if self.chips > 1 else ''}"

    def work(self, draws: str, precision: str) -> Work:
        """Reads x and the weight once (two-byte codes), writes every chip's y. Noisy weights need no memory."""
        activations, weight, products = self.shape.counts(self.images)
        x = self.images * (
            self.shape.sizes[0] if self.shape.is_linear else self.shape.sizes[0] * self.shape.sizes[4] ** 2
        )
        bytes_ = ELEMENT[precision] * (x + self.chips * (activations - x)) + 2 * weight
        normals = self.chips * weight * baselines.NORMALS[draws]
        return Work(flops=2.0 * products * self.chips, normals=normals, bytes=float(bytes_))


@functools.cache
def layer(shape: Shape) -> nn.Conv2d | nn.Linear:
    torch.manual_seed(0)
    return shape.plain().eval().requires_grad_(False).cuda()


def images(point: Point, precision: str) -> Tensor:
    """x in the fastest memory format for plain PyTorch."""
    torch.manual_seed(1)
    x = point.shape.input(point.images).cuda().to(plain.DTYPES[precision])
    return x.to(memory_format=torch.channels_last) if precision == "bf16" and x.dim() == 4 else x


def scores(shape: Shape, x: Tensor, y: Tensor) -> Tensor:
    """One score per chip and output channel, at one place of image 0: independent standard normals. y [S, out, ...] of
    image 0.
    """
    p = layer(shape)
    step, x, y = baselines.step_of(p.weight), x[:1].float(), y.float()
    clean = checks.product(p, x, baselines.quantized(p.weight, step), p.bias)
    power = checks.product(p, x * x, torch.ones_like(p.weight[:1]), None)
    if y.dim() == 4:
        row, column = divmod(int(power[0, 0].argmax()), y.shape[3])
        clean, y, power = clean[..., row, column], y[..., row, column], power[..., row, column]
    return (y - clean) / (baselines.WEIGHT_SD * step * power.sqrt())


def ready(
    point: Point,
    precision: str,
    mode: str,
    call: Callable[[], Tensor],
    of_image_0: Callable[[Tensor], Tensor],
    noisy: bool,
    quiet: Callable[[], str | None] = lambda: None,
) -> Ready:
    x = images(point, precision)
    run = timing.graphed(call) if "graph" in mode else call

    def check() -> str | None:
        if not noisy:
            return None
        found = torch.stack(
            [scores(point.shape, x, of_image_0(run())) for _ in range(max(1, 2048 // (point.chips * 512)))]
        )
        return checks.first(checks.standard_normal("output", found, precision), quiet())

    return Ready(run, check)


def ours(point: Point, draws: str, precision: str, mode: str) -> Ready:
    p, x, nvm, ops = layer(point.shape), images(point, precision), NVM[draws], torch.ops.nft_ext
    step = ops.weight_step(p.weight, nvm.weight_bits)
    key = torch.cat((torch.zeros(point.chips, 1), torch.arange(point.chips)[:, None]), 1).long().cuda()
    codes, table = ops.quantize(p.weight, step, nvm.weight_bits), torch.from_numpy(nvm.operator_table()).cuda()
    bar = Crossbar(p.weight, codes, step, table, key, 7, nvm.operator_spec())

    def product(bar: Crossbar) -> Tensor:
        if isinstance(p, nn.Linear):
            return linear_product(x, p.bias, bar, True)
        return conv2d_product(x, p.bias, bar, p.stride, p.padding, p.dilation, p.groups, True)

    def call() -> Tensor:
        # The checks need another chip in each call: increment the draws on the GPU.
        key[:, 1].add_(point.chips)
        return product(bar)

    def quiet() -> str | None:
        w_d = baselines.quantized(p.weight, baselines.step_of(p.weight)).to(x.dtype)
        expected = checks.product(p, x.double(), w_d.double(), None if p.bias is None else p.bias.double())
        found = product(bar._replace(spec=nvm.operator_spec(False)))[: point.images]
        factor = 1.0 if isinstance(p, nn.Linear) else checks.WINOGRAD[precision]
        return checks.close("noise-free output", found, expected, precision, factor)

    def exact_quiet() -> str | None:
        with timing.exact_float32():
            return quiet()

    return ready(
        point, precision, mode, call, lambda y: y.unflatten(0, (point.chips, point.images))[:, 0], True, exact_quiet
    )


def stacked(point: Point, draws: str, precision: str, mode: str) -> Ready:
    """Plain PyTorch: all chips' weights stacked along the outputs, one product."""
    p, x, dtype = layer(point.shape), images(point, precision), plain.DTYPES[precision]
    step = baselines.step_of(p.weight)
    channels_last = precision == "bf16"
    chips = 1 if draws == "none" else point.chips
    bias = None if p.bias is None else p.bias.to(dtype).repeat(chips)
    like = p.weight.expand(chips, *p.weight.shape).flatten(0, 1)
    flat = plain.in_memory_order(baselines.quantized(p.weight, step), channels_last).to(dtype).repeat(chips)
    memory, part, number = torch.empty_like(flat), torch.empty_like(flat), float(step)
    step = step.to(dtype)

    def product(flat_chips: Tensor) -> Tensor:
        return checks.product(p, x, plain.shaped(flat_chips, like, channels_last), bias)

    def call() -> Tensor:
        if draws == "none":
            return product(flat)
        if "compile" in mode:
            return product(baselines.noisy(flat, step, draws))
        return product(baselines.noise_(memory, number, draws, part).add_(flat))

    function = torch.compile(call) if "compile" in mode else call
    return ready(point, precision, mode, function, lambda y: y[0].unflatten(0, (chips, -1)), draws != "none")


def variants(point: Point) -> list[Variant]:
    found = []
    for precision in ("bf16", "fp32"):

        def add(family: str, draws: str, mode: str, make: Callable[..., Ready], precision: str = precision) -> None:
            make = functools.partial(make, point, draws, precision, mode)
            found.append(Variant(family, draws, make, point.work(draws, precision), precision, mode, True))

        for draws in ("one", "device"):
            add("nft", draws, "graph", ours)
            for mode in ("eager", "graph"):
                add("torch", draws, mode, stacked)
        if point.chips == 1:  # without noise all chips are equal
            add("torch", "none", "graph", stacked)
        if precision == "bf16" and point.chips > 1:  # compiling takes long
            add("torch", "one", "compiled graph", stacked)
    return found


def points() -> list[Point]:
    shapes = {s.name: s for s in SHAPES}
    return [Point(shapes[name], count, chips) for chips in CHIPS for name, counts in SIZES.items() for count in counts]


@torch.no_grad()
def run(task: Task) -> None:
    ceilings = Ceilings.of(task.found_by("ceilings"))
    cases = []
    for point in points():
        torch.compiler.reset()
        products = point.work("none", "bf16").flops / point.chips / 2e6
        cases.append(
            timing.measure_case(
                point.name, f"{point.chips} x 2 x {products:.1f} M FLOP", variants(point), ceilings, task
            )
            | {"rows_a_chip": point.rows}
        )
        task.save({"cases": cases, "one_pass": build_info.one_pass(), "summary": f"{len(cases)} layers and sizes"})
