"""The best plain PyTorch for the noise model on CUDA. The formulas are those of bench/harness/baselines.py.

Differences from the CPU: nothing is read back to the host, bfloat16 noise is drawn in bfloat16, and memory formats suit
tensor cores. Launches cost more than arithmetic. So an uncompiled model draws all layers' noise at once ("wholesale"):
one normal_ and one addcmul per network instead of two launches per layer.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.harness import baselines
from bench.harness.baselines import DEVICE_SD, NORMALS, PLACES, WEIGHT_SD

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}  # activations


def in_memory_order(weight: Tensor, channels_last: bool) -> Tensor:
    """The weight, flat, in the order of its later memory format."""
    return (weight.permute(0, 2, 3, 1) if channels_last and weight.dim() == 4 else weight).reshape(-1)


def shaped(flat: Tensor, like: Tensor, channels_last: bool) -> Tensor:
    """The inverse: a view of `flat` with the shape of `like`."""
    if channels_last and like.dim() == 4:
        out, channels, height, width = like.shape
        return flat.view(out, height, width, channels).permute(0, 3, 1, 2)
    return flat.view(like.shape)


class Wholesale:
    """Noise for many weights at once. chips[i] is weight i's chip, a view that `program` overwrites."""

    def __init__(self, weights: Sequence[Tensor], draws: str, dtype: torch.dtype, channels_last: bool = False) -> None:
        self.draws = draws
        steps = [baselines.step_of(w) for w in weights]
        flat = [in_memory_order(baselines.quantized(w, s), channels_last) for w, s in zip(weights, steps)]
        sd = WEIGHT_SD if draws == "one" else DEVICE_SD
        self.w_d = torch.cat(flat).to(dtype)
        self.sd = torch.cat([(sd * s).expand(len(f)) for f, s in zip(flat, steps)]).to(dtype)
        self.memory, self.part = torch.empty_like(self.w_d), torch.empty_like(self.w_d)
        self.chips, start = [], 0
        for w in weights:
            self.chips.append(shaped(self.memory[start : start + w.numel()], w, channels_last))
            start += w.numel()

    def program(self) -> list[Tensor]:
        """Programs the weights in place."""
        self.memory.normal_()
        if self.draws == "device":
            for place in PLACES[1:]:
                self.memory.add_(self.part.normal_(0.0, place))
        torch.addcmul(self.w_d, self.memory, self.sd, out=self.memory)
        return self.chips

    def functional(self) -> Tensor:
        """The chips, flat, for torch.compile, which makes one loop of it."""
        noise = torch.randn_like(self.w_d)
        for place in PLACES[1:] if self.draws == "device" else ():
            noise = noise + torch.randn_like(self.w_d) * place
        return torch.addcmul(self.w_d, noise, self.sd)


class Layer(baselines.ByHand):
    """A layer with noise on its weight, for inference in one dtype. wholesale: its chip is a view filled elsewhere."""

    def __init__(
        self, plain: nn.Conv2d | nn.Linear, draws: str, dtype: torch.dtype, channels_last: bool, functional: bool
    ) -> None:
        super().__init__(plain, draws, baselines.Scratch(), cached=True, functional=functional)
        self.w_d = shaped(in_memory_order(self.w_d, channels_last).clone(), plain.weight, channels_last).to(dtype)
        self.step = self.step.to(dtype)
        self.bias = None if plain.bias is None else plain.bias.detach().to(dtype)
        self.wholesale: Tensor | None = None
        if draws != "none" and not functional:
            self.memory, self.part = torch.empty_like(self.w_d), torch.empty_like(self.w_d)

    def chip(self) -> Tensor:
        if self.draws == "none":
            return self.w_d
        if self.wholesale is not None:
            return self.wholesale
        if self.functional:
            return baselines.noisy(self.w_d, self.step, self.draws)
        return baselines.noise_(self.memory, self.number, self.draws, self.part).add_(self.w_d)

    def forward(self, x: Tensor) -> Tensor:
        p = self.plain
        if isinstance(p, nn.Linear):
            return F.linear(x, self.chip(), self.bias)
        return F.conv2d(x, self.chip(), self.bias, p.stride, p.padding, p.dilation, p.groups)


class TrainedLayer(nn.Module):
    """A layer with straight-through noise. Sigma is a tensor, so one compiled graph serves all sigmas."""

    def __init__(self, plain: nn.Conv2d | nn.Linear, draws: str, scale: Tensor) -> None:
        super().__init__()
        self.plain, self.draws = plain, draws
        self.register_buffer("scale", scale)  # shared: sigma over baselines.SIGMA

    def forward(self, x: Tensor) -> Tensor:
        p, w = self.plain, self.plain.weight
        with torch.no_grad():
            step = baselines.step_of(w)
            w_d = baselines.quantized(w, step)
            chip = w_d if NORMALS[self.draws] == 0 else baselines.noisy(w_d, step * self.scale, self.draws)
            moved = chip - w
        chip = w + moved  # straight through: d chip / d w = 1
        if isinstance(p, nn.Linear):
            return F.linear(x, chip, p.bias)
        return F.conv2d(x, chip, p.bias, p.stride, p.padding, p.dilation, p.groups)


def replaced(model: nn.Module, make) -> nn.Module:
    """A copy of `model` with make(layer) in place of each Conv2d and Linear."""

    def convert(module: nn.Module) -> nn.Module:
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            return make(module).train(module.training)
        for name, child in module.named_children():
            setattr(module, name, convert(child))
        return module

    return convert(copy.deepcopy(model))


def network(
    model: nn.Module, draws: str, precision: str, *, functional: bool = False, wholesale: bool = False
) -> nn.Module:
    """`model` (on CUDA, eval mode) with noise, written for speed; bfloat16 uses channels_last."""
    channels_last, dtype = precision == "bf16", DTYPES[precision]
    noisy = replaced(model, lambda plain: Layer(plain, draws, dtype, channels_last, functional))
    if wholesale and draws != "none":
        layers = [m for m in noisy.modules() if isinstance(m, Layer)]
        all_at_once = Wholesale([layer.plain.weight.detach() for layer in layers], draws, dtype, channels_last)
        for layer, chip in zip(layers, all_at_once.chips):
            layer.wholesale = chip

        def program(module: nn.Module, args: tuple) -> None:
            all_at_once.program()

        noisy.register_forward_pre_hook(program)
    return noisy
