"""Checks of a variant's results. A variant that fails has no speed.

Statistical checks allow five standard errors: one false alarm in about two million checks. Each check returns None or a
sentence with the error.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.harness import baselines

ERRORS = 5.0
# Rounding of the result, relative to its largest entry, and of the noise's std (bfloat16 rounds W_p and y).
TOLERANCE = {"fp32": 2e-5, "bf16": 3e-2}
STD_SLACK = {"fp32": 1e-4, "bf16": 2e-2}
# Factors of TOLERANCE for convolutions: cuDNN's Winograd algorithm is off by up to 1.2e-4 of the largest entry on an
# H100. The first is for a layer, the second for a network.
WINOGRAD = {"fp32": 2.0**-12 / TOLERANCE["fp32"], "bf16": 1.0}
WINOGRAD_DEEP = WINOGRAD | {"fp32": 2.0**-11 / TOLERANCE["fp32"]}


def equal(what: str, found: Tensor, expected: Tensor) -> str | None:
    """Checks equality bit for bit."""
    if found.shape == expected.shape and torch.equal(found, expected):
        return None
    return f"{what} differs from plain PyTorch's"


def close(what: str, found: Tensor, expected: Tensor, precision: str, factor: float = 1.0) -> str | None:
    """Checks the error against `factor` times the rounding of the precision, relative to the largest entry."""
    found, expected = found.detach().double(), expected.detach().double()
    if found.shape != expected.shape:
        return f"{what} has the shape {list(found.shape)}, not {list(expected.shape)}"
    error = float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-30))
    limit = factor * TOLERANCE[precision]
    return None if error <= limit else f"{what} is off by {error:.1e} of its largest entry (allowed {limit:.0e})"


def alike(what: str, found: Tensor, expected: Tensor, share: float) -> str | None:
    """Checks that the norm of the difference is at most `share` of the expected norm."""
    found, expected = found.detach().double(), expected.detach().double()
    error = float((found - expected).norm() / expected.norm().clamp_min(1e-30))
    return None if error <= share else f"{what} is off by {error:.2g} of its norm (allowed {share:g})"


def standard_normal(what: str, z: Tensor, precision: str = "fp32") -> str | None:
    """Checks mean 0 and std 1 of independent scores z."""
    z = z.detach().double().reshape(-1)
    n = z.numel()
    mean, std = float(z.mean()), float(z.std())
    if not abs(mean) <= ERRORS / math.sqrt(n):
        return f"{what}: mean {mean:.4f} standard deviations, not 0 ({n} scores)"
    if not abs(std - 1) <= ERRORS / math.sqrt(2 * n) + STD_SLACK[precision]:
        return f"{what}: std {std:.4f} of what it should be, not 1 ({n} scores)"
    return None


def weight_scores(chip: Tensor, weight: Tensor) -> Tensor:
    """(W_p - W_d) / (s std): independent standard normals if W_p is right."""
    step = baselines.step_of(weight)
    return (chip.double() - baselines.quantized(weight, step).double()) / (baselines.WEIGHT_SD * float(step))


def plain_of(layer: nn.Module) -> nn.Conv2d | nn.Linear:
    return layer.plain if isinstance(layer, baselines.ByHand) else layer


def product(plain: nn.Conv2d | nn.Linear, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if isinstance(plain, nn.Linear):
        return F.linear(x, weight, bias)
    return F.conv2d(x, weight, bias, plain.stride, plain.padding, plain.dilation, plain.groups)


def output_scores(layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """One score per output channel, at one image and place of y = layer(x): independent standard normals.

    The noise's variance at an output is (s std)^2 times the sum of its inputs' x^2.
    """
    plain = plain_of(layer)
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        weight, x, y = plain.weight.detach(), x[:1].float(), y[:1].float()
        step = baselines.step_of(weight)
        clean = product(plain, x, baselines.quantized(weight, step), plain.bias)
        power = product(plain, x * x, torch.ones_like(weight[:1]), None)
        if y.dim() == 4:
            row, column = divmod(int(power[0, 0].argmax()), y.shape[3])
            clean, y, power = clean[..., row, column], y[..., row, column], power[..., row, column]
        if float(power) == 0:
            return y.new_zeros(0)
        return ((y - clean) / (baselines.WEIGHT_SD * step * power.sqrt())).reshape(-1)


def layer_scores(layers: list[nn.Module], call) -> Tensor:
    """`output_scores` of all `layers` in one forward `call()` of their model: every layer must have its noise."""
    scores: list[Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda m, args, y: scores.append(output_scores(m, args[0], y))) for layer in layers
    ]
    try:
        call()
    finally:
        for hook in hooks:
            hook.remove()
    return torch.cat(scores)


def first(*failures: str | None) -> str | None:
    """The first error."""
    return next((f for f in failures if f), None)
