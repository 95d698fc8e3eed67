"""Censored Gaussian noise injection: training noise with the upper tail, the lower tail or both cut off.

Right-censored noise is from Yan et al., "Improving Realistic Worst-Case Performance of NVCiM DNN Accelerators
through Training with Right-Censored Gaussian Noise", ICCAD 2023.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from nft_ext._common.checks import boolean, fail, number, one_of
from nft_ext.device import NVMDevice
from nft_ext.methods.base import TaskMethod
from nft_ext.methods.injected import injecting, with_injection, without_injection
from nft_ext.methods.task import Step
from nft_ext.nn.conversion import restore
from nft_ext.nn.step_key import StepKey

SIDES = ("right", "left", "both")


@dataclass(frozen=True)
class Censored(TaskMethod):
    """Cross-entropy, or a criterion, of one forward per step with `W_d + dW`, `dW = max|W| * sigma * min(z, c)`.

    z ~ N(0, 1) is one normal per weight, and max|W| is over the weights that share a step (`NVMDevice(scale=)`). The
    noise is added to the signed weight after quantization. Validation and evaluation use ordinary chips of the device
    model.

    dW is in units of max|W|, but a device's sigma is in the unit of its `relative_to`. For 8-bit weights on 2-bit
    devices and `relative_to="max"`, chips have a standard deviation of 0.7776 sigma max|W|. Set
    `noise_sigma=0.7776 * sigma` to train at this deviation.

    Args:
        sigma: device sigma of the validation, in the unit of the device model. Also the sigma of dW if `noise_sigma`
            is None.
        c: cut of z, in standard deviations. The default 1 is our choice; search for the best value.
        side: "right": min(z, c); "left": max(z, -c); "both": min(max(z, -c), c).
        mean_corrected: subtract the mean of the cut noise, `E[min(z, c)] * sigma * max|W|`.
        noise_sigma: sigma of dW; None: `sigma`.

    Raises:
        ValueError: sigma or noise_sigma is negative or not finite, c is not positive, or side is unknown.
    """

    name: ClassVar[str] = "censored"
    sigma: float
    c: float = 1.0
    side: str = "right"
    mean_corrected: bool = False
    noise_sigma: float | None = None

    def __post_init__(self) -> None:
        number("sigma", self.sigma, low=0.0)
        if number("c", self.c) <= 0.0:
            fail("c", "must be > 0", self.c)
        one_of("side", self.side, SIDES)
        boolean("mean_corrected", self.mean_corrected)
        if self.noise_sigma is not None:
            number("noise_sigma", self.noise_sigma, low=0.0)

    def mean(self) -> float:
        """Mean of the cut z.

        For "right" it is `c Q(c) - phi(c)`, phi the density and Q the upper tail. "left": its negative. "both": 0.
        """
        density = math.exp(-0.5 * self.c**2) / math.sqrt(2.0 * math.pi)
        tail = 0.5 * math.erfc(self.c / math.sqrt(2.0))
        return {"right": 1.0, "left": -1.0, "both": 0.0}[self.side] * (self.c * tail - density)

    def noise(self, z: Tensor) -> Tensor:
        """`dW / max|W|` for standard normals z, any shape."""
        low, high = (None if self.side == "right" else -self.c), (None if self.side == "left" else self.c)
        cut = z.clamp(low, high)
        sigma = self.sigma if self.noise_sigma is None else self.noise_sigma
        return sigma * (cut - self.mean() if self.mean_corrected else cut)

    def prepare(self, model: nn.Module, nvm: NVMDevice | None = None) -> nn.Module:
        """A noisy copy of `model` whose layers can inject the cut noise."""
        return with_injection(super().prepare(model, nvm), self.noise)

    def _loss(self, model: nn.Module, step: Step) -> Tensor:
        with injecting(model), StepKey(model).forward():
            output = step.output(model)
        return step.loss(output, step.target(output, model))

    def finish(self, model: nn.Module) -> nn.Module:
        """A plain copy of the prepared model."""
        return restore(without_injection(copy.deepcopy(model)))
