"""Vanilla: plain float training, without noise or quantization."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from nft_ext.methods.base import TaskMethod
from nft_ext.methods.task import Step


@dataclass(frozen=True)
class Vanilla(TaskMethod):
    """Cross-entropy, or a criterion, on the plain model, without noise and quantization."""

    name: ClassVar[str] = "vanilla"
    sigma: ClassVar[None] = None  # pyright: ignore[reportIncompatibleVariableOverride]  # fixed, so not an option

    def _loss(self, model: nn.Module, step: Step) -> Tensor:
        output = step.output(model)
        return step.loss(output, step.target(output, model))
