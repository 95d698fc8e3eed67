"""Cases `conv2d-*` and `linear-*`: single noisy layers of real networks, forward (inference) and forward+backward.

`linear-rows-*` are forwards of one large Linear on 1 to 512 rows.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

import nft_ext as nft
from bench.cpu.sampler import SAMPLING
from bench.harness import autocast, baselines, checks
from bench.harness.case import Case, Ready, Variant, Work

FORWARD_ROWS, BACKWARD_ROWS = 1, 128  # Monte Carlo at few images per chip; training
ROUNDS = 11
SCORES = 2048  # outputs per statistical check
SAME_CHIP = {"fp32": 1e-4, "bf16": 5e-3}  # see _check_backward


@dataclasses.dataclass(frozen=True)
class Shape:
    """A layer and the size of its input: conv [C, out, kernel, stride, side] or linear [in, out]."""

    name: str
    sizes: tuple[int, ...]

    @property
    def is_linear(self) -> bool:
        return len(self.sizes) == 2

    def plain(self) -> nn.Conv2d | nn.Linear:
        if self.is_linear:
            return nn.Linear(*self.sizes)
        channels, out, kernel, stride, _ = self.sizes
        return nn.Conv2d(channels, out, kernel, stride, padding=kernel // 2, bias=False)

    def input(self, rows: int) -> Tensor:
        if self.is_linear:
            return torch.randn(rows, self.sizes[0])
        return torch.randn(rows, self.sizes[0], self.sizes[4], self.sizes[4])

    def counts(self, rows: int) -> tuple[int, int, int]:
        """(elements of x and y, of the weight, multiply-adds)."""
        if self.is_linear:
            inputs, out = self.sizes
            return rows * (inputs + out), inputs * out, rows * inputs * out
        channels, out, kernel, stride, side = self.sizes
        places = rows * (side // stride) ** 2
        weight = channels * out * kernel * kernel
        return rows * channels * side * side + places * out, weight, places * weight


SHAPES = (
    Shape("conv2d-64x32", (64, 64, 3, 1, 32)),  # ResNet-18, layer1: few weights, many places
    Shape("conv2d-256x8", (256, 256, 3, 1, 8)),  # layer3
    Shape("conv2d-512x4", (512, 512, 3, 1, 4)),  # layer4: many weights, few places
    Shape("linear-8192x1024", (8192, 1024)),  # VGG-8, fc1
)
LARGE, ROWS = Shape("linear-rows", (4096, 4096)), (1, 8, 32, 128, 512)  # a projection of a language model
TINY = (Shape("conv2d-8x4", (8, 8, 3, 1, 4)), Shape("linear-8x8", (8, 8)))  # the cost of a call


class Trial:
    """One layer, plain or noisy, at one precision, with its input."""

    def __init__(
        self, layer: nn.Module, call: Callable[[Tensor], Tensor], shape: Shape, rows: int, precision: str
    ) -> None:
        self.layer, self.call, self.precision = layer, call, precision
        torch.manual_seed(1)
        self.x = shape.input(rows)
        self.plain = checks.plain_of(layer)
        self.w_d = baselines.quantized(self.plain.weight.detach(), baselines.step_of(self.plain.weight.detach()))

    @torch.no_grad()
    def forward(self) -> Tensor:
        with autocast.context(self.precision):
            return self.call(self.x)

    def forward_backward(self) -> tuple[Tensor, ...]:
        """(y, dx, dW) for dL/dy = y."""
        x = self.x.detach().requires_grad_()
        with autocast.context(self.precision):
            y = self.call(x)
        return y, *torch.autograd.grad(y, (x, self.plain.weight), y.detach())

    def truth_forward(self) -> Tensor:
        """y of the quantized weight in plain PyTorch, float32."""
        return checks.product(self.plain, self.x, self.w_d, self.plain.bias)

    def truth(self, grad: Tensor) -> tuple[Tensor, ...]:
        """(y, dx, dW) of the quantized weight in plain PyTorch, float32, for dL/dy = grad."""
        x, w = self.x.detach().requires_grad_(), self.w_d.clone().requires_grad_()
        y = checks.product(self.plain, x, w, self.plain.bias)
        return y, *torch.autograd.grad(y, (x, w), grad.to(y.dtype))


def _check_noise(trial: Trial) -> str | None:
    """Scores of all channels of several chips, with or without gradients like the caller."""
    chips = -(-SCORES // trial.plain.weight.shape[0])
    scores = []
    for _ in range(chips):
        with autocast.context(trial.precision):
            scores.append(checks.output_scores(trial.layer, trial.x, trial.call(trial.x).detach()))
    return checks.standard_normal("output", torch.cat(scores), trial.precision)


@torch.no_grad()
def _check_forward(trial: Trial, quiet: Trial | None) -> str | None:
    return checks.first(
        quiet and checks.close("noise-free output", quiet.forward(), trial.truth_forward(), trial.precision),
        _check_noise(trial),
    )


def _check_backward(trial: Trial, quiet: Trial | None) -> str | None:
    precision = trial.precision
    if quiet is not None:
        y, dx, dw = quiet.forward_backward()
        expected = quiet.truth(y.detach())
        failure = checks.first(
            checks.close("noise-free output", y, expected[0], precision),
            checks.close("noise-free dL/dx", dx, expected[1], precision),
            checks.close("noise-free dL/dW", dw, expected[2], precision),
        )
        if failure:
            return failure
    y, dx, dw = trial.forward_backward()
    y = y.detach()
    clean = y if trial.plain.bias is None else y - trial.plain.bias.detach()
    # y - bias is linear in x, so <dx, x> = <dy, y - bias> (here dy = y) if the backward used the forward's chip. With
    # another one it loses the noise's share of |y|^2, more than a percent.
    lost = abs(float((dx.double() * trial.x.double()).sum() / (y.double() * clean.double()).sum()) - 1)
    return checks.first(
        # Straight-through: for the same dy, dL/dW does not depend on the noise.
        checks.close("dL/dW", dw, trial.truth(y)[2], precision),
        f"dL/dx belongs to another chip than y (<dx, x> off by {lost:.1e})" if lost > SAME_CHIP[precision] else None,
        _check_noise(trial),
    )


def _layer(shape: Shape) -> nn.Module:
    torch.manual_seed(0)
    return shape.plain().eval()


def _ready(trial: Trial, backward: bool, check: Callable[[], str | None]) -> Ready:
    return Ready(trial.forward_backward if backward else trial.forward, check)


def _plain(shape: Shape, rows: int, precision: str, backward: bool) -> Ready:
    layer = _layer(shape)
    return _ready(Trial(layer, layer, shape, rows, precision), backward, lambda: None)


def _ours(shape: Shape, rows: int, precision: str, backward: bool, draws: str) -> Ready:
    layer, off = (nft.convert(_layer(shape), SAMPLING[draws]) for _ in range(2))
    off.set_enabled(False)
    trial, quiet = (Trial(m, m, shape, rows, precision) for m in (layer, off))
    check = _check_backward if backward else _check_forward
    return _ready(trial, backward, lambda: check(trial, quiet))


def _by_hand(shape: Shape, rows: int, precision: str, backward: bool, draws: str, mode: str) -> Ready:
    compiled = mode == "compile"
    layer = baselines.by_hand(_layer(shape), draws, cached=not backward, functional=compiled)
    trial = Trial(layer, baselines.compiled(layer) if compiled else layer, shape, rows, precision)
    check = _check_backward if backward else _check_forward
    return _ready(trial, backward, lambda: check(trial, None))


def _case(shape: Shape, backward: bool, rows: int | None = None) -> Case:
    """Rows: of the input; None for the usual number, which is no part of the case's name."""
    given, rows = rows, rows or (BACKWARD_ROWS if backward else FORWARD_ROWS)
    activations, weight, products = shape.counts(rows)

    def variant(family: str, draws: str, precision: str, make: Callable[..., Ready], *options: str) -> Variant:
        # Forward+backward: three products; x, y, W and their gradients.
        work = Work(
            flops=(6.0 if backward else 2.0) * products,
            normals=baselines.NORMALS[draws] * weight,
            bytes=(1 + backward) * (activations * autocast.ELEMENT_BYTES[precision] + 4.0 * weight),
        )
        make = functools.partial(make, shape, rows, precision, backward, *options)
        return Variant(family, draws, make, work, precision, *options[1:], cached=draws != "none" and not backward)

    variants = []
    for precision in ("fp32", "bf16"):
        variants.append(variant("torch", "none", precision, _plain))
        for draws in ("one", "device"):
            variants.append(variant("nft", draws, precision, _ours, draws))
            variants.append(variant("torch", draws, precision, _by_hand, draws, "eager"))
        if shape not in TINY:
            variants.append(variant("torch", "one", precision, _by_hand, "one", "compile"))
    direction = str(given) if given else "backward" if backward else "forward"
    text = (
        " x ".join(map(str, shape.sizes))
        if shape.is_linear
        else "{} -> {}, {k}x{k}, stride {}, {s} x {s}".format(
            shape.sizes[0], shape.sizes[1], shape.sizes[3], k=shape.sizes[2], s=shape.sizes[4]
        )
    )
    what = "forward + backward" if backward else "forward"
    return Case(f"{shape.name}-{direction}", f"{text}, batch {rows}, {what}", tuple(variants), rounds=ROUNDS)


def cases() -> list[Case]:
    usual = [_case(shape, backward) for backward in (False, True) for shape in SHAPES + TINY]
    return usual + [_case(LARGE, False, rows) for rows in ROWS]
