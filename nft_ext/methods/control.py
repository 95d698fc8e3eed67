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

from nft_ext._common.checks import fail, integer, number
from nft_ext._common.logits import logits_of
from nft_ext.methods.base import Method


def control_of(method: Method, model: nn.Module | None = None) -> Method:
    """The control of a method with feedback: the same sigma and logit factor `a_b`, beta = 0, no feedback forwards.

    To be trained from the same weights, with the same seed, epochs and learning rate.

    Args:
        method: OVF or IRS, or CorrectNet around one (its control keeps the regularizer).
        model: the plain model; needed where N follows from it (IRS with neither points nor feedbacks).

    Raises:
        ValueError: a method without feedback; IRS whose N is not known without the model.
    """
    return method.control(model)


@dataclass(frozen=True)
class ScaledLogits(Method):
    """Noise injection on `O = a_b * O_backbone`: OVF or IRS with N feedbacks at beta = 0 (Eq. 1-3).

    Args:
        sigma: device sigma, in the device model's convention.
        feedbacks: N of the method this is the control of.
        a_b: its factor on the backbone's logits; None: `1/(N+1)`.

    Raises:
        ValueError: sigma negative or not finite, feedbacks < 1, a_b not positive.
    """

    name: ClassVar[str] = "control"
    sigma: float
    feedbacks: int = 3
    a_b: float | None = None

    def __post_init__(self) -> None:
        number("sigma", self.sigma, low=0.0)
        integer("feedbacks", self.feedbacks, 1)
        if self.a_b is not None and number("a_b", self.a_b) <= 0.0:
            fail("a_b", "must be > 0", self.a_b)

    def loss(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy of `a_b * logits`, a scalar."""
        logits = logits_of(model(x))
        scaled = logits / (self.feedbacks + 1) if self.a_b is None else self.a_b * logits
        return cross_entropy(scaled, target)
