"""The best plain PyTorch for the noise model, to compare our kernels with.

The model is that of nft_ext (Eq. 4 and 5, sigma relative to the maximal conductance): step, code, sign, noise on zero
weights too, straight-through gradients. Error and rounding are symmetric, so signed weights need no abs, sign or clamp:
W_d = round(W / s) * s and W_p = W_d + s * noise.

Each choice was the fastest on two AVX-512 cores: aminmax (one pass) against abs().amax() (3x) and vector_norm (15x);
normal_(0, sd) in place against randn, torch.normal and alpha=; reused memory against fresh results (page clearing);
devices summed in place against randn([M / K, *shape]) with a product; compiled graphs with torch's own generator
(fallback_random) against inductor's.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WEIGHT_BITS, DEVICE_BITS, SIGMA = 8, 2, 0.1
PLACES = [float(1 << j) for j in range(0, WEIGHT_BITS, DEVICE_BITS)]  # 2^(jK)
DEVICE_SD = SIGMA * (2**DEVICE_BITS - 1)  # one device, level units
WEIGHT_SD = DEVICE_SD * math.sqrt(sum(place**2 for place in PLACES))  # one weight, steps
NORMALS = {"none": 0, "one": 1, "device": len(PLACES)}  # drawn for one weight
COMPILE_OPTIONS = {"fallback_random": True}


def step_of(weight: Tensor) -> Tensor:
    """Step s = max|W| / (2^M - 1), a tensor []."""
    low, high = torch.aminmax(weight)
    return torch.maximum(-low, high) / (2**WEIGHT_BITS - 1)


def quantized(weight: Tensor, step: Tensor) -> Tensor:
    """W_d of Eq. 4."""
    return torch.div(weight, step).round_().mul_(step)


# ---- eager: in place, with the fewest loops that torch allows


class Scratch:
    """Memory that only grows. The chip of each layer overwrites the previous one."""

    def __init__(self) -> None:
        self._buffers: dict[int, Tensor] = {}

    def like(self, slot: int, weight: Tensor) -> Tensor:
        buffer = self._buffers.get(slot)
        if buffer is None or buffer.numel() < weight.numel():
            buffer = self._buffers[slot] = torch.empty(weight.numel())
        return buffer[: weight.numel()].view(weight.shape)


def noise_(chip: Tensor, step: float, draws: str, scratch: Tensor | None = None) -> Tensor:
    """Overwrites `chip` with s * sum_j dg_j 2^(jK)."""
    if draws == "one":
        return chip.normal_(0.0, WEIGHT_SD * step)
    chip.normal_(0.0, DEVICE_SD * step)
    part = torch.empty_like(chip) if scratch is None else scratch
    for place in PLACES[1:]:
        chip.add_(part.normal_(0.0, DEVICE_SD * step * place))
    return chip


def sample(weight: Tensor, draws: str, scratch: Scratch) -> Tensor:
    """W_p from the float weight, nothing cached; valid until the next call."""
    step = step_of(weight)
    code = torch.div(weight, step, out=scratch.like(0, weight)).round_()
    step = float(step)
    part = scratch.like(2, weight) if draws == "device" else None
    return noise_(scratch.like(1, weight), step, draws, part).add_(code, alpha=step)


def sample_cached(w_d: Tensor, step: float, draws: str, scratch: Scratch, scale: Tensor | None = None) -> Tensor:
    """W_p from the kept W_d, valid until the next call. `scale` per channel, if W_d has it, also scales the noise."""
    chip = noise_(scratch.like(1, w_d), step, draws, scratch.like(2, w_d) if draws == "device" else None)
    return chip.add_(w_d) if scale is None else torch.addcmul(w_d, chip, scale, out=chip)


def sample_stacked(weight: Tensor) -> Tensor:
    """W_p with one normal per device, the usual code: randn of [M / K, *shape], then the sum over devices."""
    step = step_of(weight)
    w_d = quantized(weight, step)
    z = torch.randn(len(PLACES), weight.numel())
    places = torch.tensor(PLACES) * (DEVICE_SD * step)
    return torch.addmv(w_d.view(-1), z.t(), places).view(weight.shape)


class ThreadedSampler:
    """W_p with one generator per thread, for orientation: no plain use of torch."""

    def __init__(self, threads: int) -> None:
        self.pool = ThreadPoolExecutor(threads)
        self.generators = [torch.Generator().manual_seed(i) for i in range(threads)]
        self.scratch = Scratch()

    def __call__(self, w_d: Tensor, step: float) -> Tensor:
        chip = self.scratch.like(0, w_d)
        count = len(self.generators)
        # The sum stays in the caller's thread: each thread that starts a parallel operation gets OpenMP workers of its
        # own, and with more workers than cores all of them sleep between operations, everybody's.
        parts = zip(chip.view(-1).chunk(count), self.generators)
        list(self.pool.map(lambda p: p[0].normal_(0.0, WEIGHT_SD * step, generator=p[1]), parts))
        return chip.add_(w_d)


# ---- functional: for autograd and for torch.compile, which merges the loops


def noisy(w_d: Tensor, step: Tensor, draws: str) -> Tensor:
    """W_p from W_d."""
    if draws == "one":
        return w_d + torch.randn_like(w_d) * (WEIGHT_SD * step)
    for place in PLACES:
        w_d = w_d + torch.randn_like(w_d) * (DEVICE_SD * place * step)
    return w_d


class StraightThrough(torch.autograd.Function):
    """W -> W_p, gradient unchanged. As usual in torch, the product keeps W_p for its backward."""

    @staticmethod
    def forward(ctx, weight: Tensor, draws: str, in_place: bool) -> Tensor:
        step = step_of(weight)
        if in_place:
            code, step = torch.div(weight, step).round_(), float(step)
            return noise_(torch.empty_like(weight), step, draws, None).add_(code, alpha=step)
        return noisy(quantized(weight, step), step, draws)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return grad, None, None


# ---- layers and networks


class ByHand(nn.Module):
    """A Conv2d or Linear with noise on its weight, in plain PyTorch written for speed.

    draws: "one", "device", or "none" (then W_d is used). cached: keep W_d (inference). functional: for torch.compile.
    """

    def __init__(
        self, plain: nn.Conv2d | nn.Linear, draws: str, scratch: Scratch, cached: bool, functional: bool
    ) -> None:
        super().__init__()
        self.plain, self.draws, self.scratch = plain, draws, scratch
        self.cached, self.functional = cached, functional
        step = step_of(plain.weight.detach())
        self.number = float(step)
        self.register_buffer("step", step)
        self.register_buffer("w_d", quantized(plain.weight.detach(), step))
        self.register_buffer("scale", None)  # of a folded batch-norm
        self.register_buffer("shift", None)

    def fold(self, norm: nn.BatchNorm2d) -> None:
        """Folds `norm` in eval mode into a layer without bias: scales W_d and noise, adds the shift."""
        scale = norm.weight.detach() * torch.rsqrt(norm.running_var + norm.eps)
        self.shift = norm.bias.detach() - norm.running_mean * scale
        self.scale = scale.view(-1, 1, 1, 1)
        self.w_d, self.step = self.w_d * self.scale, self.step * self.scale

    def chip(self) -> Tensor:
        weight = self.plain.weight
        if self.draws == "none":
            return self.w_d
        if torch.is_grad_enabled():
            return StraightThrough.apply(weight, self.draws, not self.functional)
        if self.functional:
            step = self.step if self.cached else step_of(weight)
            return noisy(self.w_d if self.cached else quantized(weight, step), step, self.draws)
        if self.cached:
            return sample_cached(self.w_d, self.number, self.draws, self.scratch, self.scale)
        return sample(weight, self.draws, self.scratch)

    def forward(self, x: Tensor) -> Tensor:
        plain = self.plain
        bias = plain.bias if self.shift is None else self.shift
        if isinstance(plain, nn.Linear):
            return F.linear(x, self.chip(), bias)
        return F.conv2d(x, self.chip(), bias, plain.stride, plain.padding, plain.dilation, plain.groups)


def by_hand(model: nn.Module, draws: str, *, cached: bool = False, functional: bool = False) -> nn.Module:
    """A copy of `model` (a network or a layer) with ByHand layers that share one scratch memory."""
    scratch = Scratch()

    def convert(module: nn.Module) -> nn.Module:
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            return ByHand(module, draws, scratch, cached, functional).train(module.training)
        for name, child in module.named_children():
            setattr(module, name, convert(child))
        return module

    return convert(copy.deepcopy(model))


def fold_norms(model: nn.Module) -> nn.Module:
    """Folds batch-norms into their cached ByHand layers in place, for inference."""
    for parent in model.modules():
        children = list(parent.named_children())
        for (_, layer), (name, norm) in itertools.pairwise(children):
            if isinstance(layer, ByHand) and layer.plain.bias is None and isinstance(norm, nn.BatchNorm2d):
                layer.fold(norm)
                setattr(parent, name, nn.Identity())
    return model


def compiled(function: Callable) -> Callable:
    """torch.compile with the fastest settings."""
    return torch.compile(function, options=COMPILE_OPTIONS)
