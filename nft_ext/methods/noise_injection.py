"""Noise injection: every training forward runs on a freshly programmed chip."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from nft_ext._common.checks import fail, number
from nft_ext._common.logits import logits_of
from nft_ext.methods.base import Method


@dataclass(frozen=True)
class NoiseInjection(Method):
    """Cross-entropy of one noisy forward a step, a new chip each time.

    Args:
        sigma: device sigma, in the device model's convention.
        logit_scale: factor on the logits inside the cross-entropy, an inverse temperature. 1 is the usual
            noise injection; see `ScaledLogits` for why it matters.

    Raises:
        ValueError: sigma negative or not finite, logit_scale not positive.
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
        return cross_entropy(self.logit_scale * logits_of(model(x)), target)
