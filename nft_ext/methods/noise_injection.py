"""Noise injection: every training forward runs on a new chip."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from nft_ext._common.checks import fail, number
from nft_ext.methods.base import TaskMethod
from nft_ext.methods.task import Criterion, Step, Task, check_factor, scaled
from nft_ext.nn.step_key import StepKey


@dataclass(frozen=True)
class NoiseInjection(TaskMethod):
    """Cross-entropy, or a criterion, of one noisy forward per step, each on a new chip.

    Args:
        sigma: device sigma, in the unit of the device model.
        logit_scale: factor on the output inside the criterion, an inverse temperature. 1 is the usual noise injection
            and the only one for a regression.

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

    def check_criterion(self, criterion: Criterion | None) -> None:
        """Refuses a factor on the output of a regression."""
        check_factor(Task(criterion), "logit_scale", self.logit_scale, self.logit_scale)

    def _loss(self, model: nn.Module, step: Step) -> Tensor:
        with StepKey(model).forward():
            output = step.output(model)
        target = step.target(output, model)
        if self.logit_scale != 1.0:
            output = scaled(self.logit_scale, output)
        return step.loss(output, target)
