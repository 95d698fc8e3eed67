"""The control of feedback training: noise injection with the same logit factor, but no feedback.

The factor a_b = 1/(N+1) of Eq. 1-3 acts as a temperature of the cross-entropy. It changes accuracy under noise and EKL
a lot by itself. So only a gain over this control, not over plain noise injection, shows an effect of the feedback.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from nft_ext._common.checks import instance, integer, module, number
from nft_ext.methods.base import Method, TaskMethod
from nft_ext.methods.losses import UNIT, check_share
from nft_ext.methods.task import Criterion, Step, Task, check_factor, weighted
from nft_ext.nn.step_key import StepKey


def control_of(method: Method, model: nn.Module | None = None) -> Method:
    """The control of a method with feedback: same sigma and logit factor `a_b`, but no feedback (beta = 0).

    Train it from the same weights with the same seed, epochs and learning rate.

    Args:
        method: OVF or IRS, or CorrectNet around one. CorrectNet's control keeps the regularizer.
        model: the plain model. IRS without points and feedbacks needs it to find N.

    Returns:
        The control, a method.

    Raises:
        TypeError: method is no method, or model is no module.
        ValueError: the method has no feedback, or IRS needs `model` to find N.
    """
    instance("method", method, Method, "an object of nft_ext.methods")
    return method.control(None if model is None else module("model", model))


@dataclass(frozen=True)
class ScaledLogits(TaskMethod):
    """Noise injection on `O = a_b * O_backbone`: OVF or IRS with N feedbacks at beta = 0 (Eq. 1-3).

    Args:
        sigma: device sigma, in the unit of the device model.
        feedbacks: N of the method with feedback.
        a_b: factor on the backbone's output; None: `1/(N+1)`. "unit": 1, for a regression.

    Raises:
        ValueError: sigma is negative or not finite, feedbacks < 1, or a_b is not positive.
    """

    name: ClassVar[str] = "control"
    sigma: float
    feedbacks: int = 3
    a_b: float | str | None = None

    def __post_init__(self) -> None:
        number("sigma", self.sigma, low=0.0)
        integer("feedbacks", self.feedbacks, 1)
        check_share(self.a_b)

    def check_criterion(self, criterion: Criterion | None) -> None:
        """Refuses a factor on the output of a regression, and the default factor under a criterion of your own."""
        check_factor(Task(criterion), "a_b", self.a_b, self._factor)

    @property
    def _factor(self) -> float:
        if self.a_b is None:
            return 1.0 / (self.feedbacks + 1)
        return 1.0 if self.a_b == UNIT else float(self.a_b)

    def _loss(self, model: nn.Module, step: Step) -> Tensor:
        with StepKey(model).forward():
            output = step.output(model)
        target = step.target(output, model)

        def scaled(tensors: Sequence[Tensor]) -> Tensor:  # x / 4 and 0.25 x may differ in the last bit
            return tensors[0] / (self.feedbacks + 1) if self.a_b is None else self._factor * tensors[0]

        return step.loss(weighted(scaled, [output]), target)
