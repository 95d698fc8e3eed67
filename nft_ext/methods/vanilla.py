"""Vanilla: plain float training, without noise or quantization."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from nft_ext._common.logits import logits_of
from nft_ext._common.targets import checked_target
from nft_ext.methods.base import Method


@dataclass(frozen=True)
class Vanilla(Method):
    """Cross-entropy on the plain model, without noise and quantization."""

    name: ClassVar[str] = "vanilla"
    sigma: ClassVar[None] = None  # pyright: ignore[reportIncompatibleVariableOverride]  # fixed, so not an option

    def loss(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy of the logits, a scalar."""
        logits = logits_of(model(x))
        return cross_entropy(logits, checked_target(logits, target, model))
