"""The control: noise injection with the logits scaled as feedback training scales them, and no feedback.

The factor a_b = 1/(N+1) of Eq. 1-3 is a temperature inside the cross-entropy, and by itself changes the
accuracy under noise and the EKL a great deal. A gain over plain noise injection therefore says nothing about
feedback; a gain over this control does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from nft_ext.checks import integer, number
from nft_ext.methods.base import Method


@dataclass(frozen=True)
class ScaledLogits(Method):
    """Noise injection on `O = O_backbone / (N+1)`: OVF or IRS with N feedbacks at beta = 0 (Eq. 1-3).

    Args:
        sigma: device sigma, in the device model's convention.
        feedbacks: N of the method this is the control of.

    Raises:
        ValueError: sigma negative or not finite, feedbacks < 1.
    """

    name: ClassVar[str] = "control"
    sigma: float
    feedbacks: int = 3

    def __post_init__(self) -> None:
        number("sigma", self.sigma, low=0.0)
        integer("feedbacks", self.feedbacks, 1)

    def loss(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy of `logits / (N+1)`, a scalar."""
        return cross_entropy(model(x) / (self.feedbacks + 1), target)
