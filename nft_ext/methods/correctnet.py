"""CorrectNet's regularizer (arXiv 2211.14917): matrices close to orthogonal, so that no direction amplifies errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nft_ext._common.checks import fail, number
from nft_ext.device import NVMDevice
from nft_ext.methods.base import Method
from nft_ext.methods.registry import build
from nft_ext.methods.vanilla import Vanilla


def orthogonality(weight: Tensor, diagonal: float) -> Tensor:
    """`sum ||W^T W - lambda I||_F^2` over the matrices W of a weight, a scalar.

    Args:
        weight: [out, in / groups, kh, kw], each kernel [kh, kw] a matrix of its own; or [out, in], one matrix.
        diagonal: lambda.
    """
    with torch.autocast(weight.device.type, enabled=False):  # the products in float32 whatever the model's precision
        matrices = weight.flatten(0, 1) if weight.dim() == 4 else weight.unsqueeze(0)  # [n, rows, columns]
        count, rows, columns = matrices.shape
        # W W^T has the eigenvalues of W^T W but for zeros, each of which adds lambda^2: take the smaller of the two.
        gram = matrices.mT @ matrices if columns <= rows else matrices @ matrices.mT
        gram = gram - diagonal * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        return gram.square().sum() + count * max(0, columns - rows) * diagonal**2


@dataclass(frozen=True)
class CorrectNet(Method):
    """The loss of another method plus `strength * sum ||W^T W - lambda I||_F^2` over convolutions and linear layers.

    The noise-free weights are regularized. The sum is over every kernel, so the loss itself is large (thousands of
    nats) and says little: read validation figures instead.

    Args:
        base: the method that is regularized: an object, its name where it needs no options, or its `config()`.
        strength: beta of the formula; CorrectNet's 5e-4.
        diagonal: lambda of the formula; CorrectNet's 1.

    Raises:
        ValueError: strength or diagonal negative or not finite, a base that is no method.
    """

    name: ClassVar[str] = "correctnet"
    base: Method | Mapping[str, Any] | str = Vanilla()
    strength: float = 5e-4
    diagonal: float = 1.0

    def __post_init__(self) -> None:
        number("strength", self.strength, low=0.0)
        number("diagonal", self.diagonal, low=0.0)
        base = {"name": self.base} if isinstance(self.base, str) else self.base
        if isinstance(base, Mapping):
            base = build(**base)
        if not isinstance(base, Method) or isinstance(base, CorrectNet):
            fail("base", "must be a method, its name or its config(), not another correctnet", base)
        object.__setattr__(self, "base", base)

    @property
    def sigma(self) -> float | None:  # type: ignore[override]
        """The base's."""
        return self.base.sigma

    def prepare(self, model: nn.Module, nvm: NVMDevice | None = None) -> nn.Module:
        """As the base prepares it."""
        return self.base.prepare(model, nvm)

    def penalty(self, model: nn.Module) -> Tensor:
        """`sum ||W^T W - lambda I||_F^2` over the part of a prepared model that stays, a scalar.

        Raises:
            ValueError: no convolution and no linear layer.
        """
        layers = [m for m in self.base.backbone(model).modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
        if not layers:
            fail("model", "must hold a Conv2d or Linear for correctnet to regularize", type(model).__name__)
        return sum(orthogonality(layer.weight, self.diagonal) for layer in layers)

    def loss(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        """The base's loss plus the regularizer, a scalar."""
        return self.base.loss(model, x, target) + self.strength * self.penalty(model)

    def finish(self, model: nn.Module) -> nn.Module:
        """As the base finishes it."""
        return self.base.finish(model)

    def backbone(self, model: nn.Module) -> nn.Module:
        """The base's."""
        return self.base.backbone(model)

    def control(self, model: nn.Module | None = None) -> Method:
        """The regularizer around the base's control."""
        return replace(self, base=self.base.control(model))
