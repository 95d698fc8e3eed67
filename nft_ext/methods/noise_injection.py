"""Noise injection: every training forward runs on a new chip."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from nft_ext._common.checks import fail, number
from nft_ext._common.logits import logits_of
from nft_ext._common.targets import checked_target
from nft_ext.methods.base import Method
from nft_ext.nn.step_key import StepKey


@dataclass(frozen=True)
class NoiseInjection(Method):
    """Cross-entropy of one noisy forward per step, each on a new chip.

    Args:
        sigma: device sigma, in the unit of the device model.
        logit_scale: factor on the logits in the cross-entropy, an inverse temperature. 1 is the usual noise injection.

    Raises:
        ValueError: sigma is negative or not finite, or logit_scale is not positive.
    """

    name: ClassVar[str] = "noise"
    sigma: float
    logit_scale: float = 1.0

    def __post_init__(self) -> None:
        number("sigma", self.sigma, low=0.0)
        if number("logit_scale", self.logit_scale) <= 0.0:
            fail("logit_scale", "must be > 0", self.logit_scale)

    def loss(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy of `logit_scale * logits`, a scalar."""
        with StepKey(model).forward():
            logits = logits_of(model(x))
        return cross_entropy(self.logit_scale * logits, checked_target(logits, target, model))
