"""CorrectNet's regularizer (arXiv 2211.14917): it keeps weight matrices near orthogonal, so they amplify no errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nft_ext._common.checks import fail, number
from nft_ext.device import NVMDevice
from nft_ext.methods.base import Method, prepared_for, takes
from nft_ext.methods.registry import build
from nft_ext.methods.task import Criterion, Forward, Select
from nft_ext.methods.vanilla import Vanilla


def orthogonality(weight: Tensor, diagonal: float) -> Tensor:
    """`sum ||W^T W - lambda I||_F^2` over the matrices W of a weight, a scalar.

    Args:
        weight: [out, in / groups, kh, kw] (one matrix per kernel [kh, kw]), or [out, in] (one matrix).
        diagonal: lambda.

    Returns:
        The penalty, in float32 under any autocast.
    """
    with torch.autocast(weight.device.type, enabled=False):
        matrices = weight.flatten(0, 1) if weight.dim() == 4 else weight.unsqueeze(0)  # [n, rows, columns]
        count, rows, columns = matrices.shape
        # W W^T and W^T W share their nonzero eigenvalues, and each zero adds lambda^2: compute the smaller matrix.
        gram = matrices.mT @ matrices if columns <= rows else matrices @ matrices.mT
        gram = gram - diagonal * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        return gram.square().sum() + count * max(0, columns - rows) * diagonal**2


@dataclass(frozen=True)
class CorrectNet(Method):
    """The loss of another method plus `strength * sum ||W^T W - lambda I||_F^2` over convolutions and linear layers.

    The penalty uses the float weights. It sums over every kernel, so the training loss is large (thousands of
    nats). Judge a training by its validation figures.

    Args:
        base: the regularized method: an object, its `config()`, or its name if it needs no options.
        strength: the paper's beta; 5e-4 as there.
        diagonal: the paper's lambda; 1 as there.

    Raises:
        ValueError: strength or diagonal is negative or not finite, or base is not a method.
    """

    name: ClassVar[str] = "correctnet"
    base: Method | Mapping[str, Any] | str = Vanilla()  # noqa: RUF009 (frozen, so it may be shared)
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
    def _method(self) -> Method:
        """The base as a method object."""
        assert isinstance(self.base, Method), "made so in __post_init__"
        return self.base

    @property
    def sigma(self) -> float | None:
        """The base's sigma."""
        return self._method.sigma

    def prepare(
        self,
        model: nn.Module,
        nvm: NVMDevice | None = None,
        *,
        example: Any = None,
        forward: Forward | None = None,
        output: Select | None = None,
    ) -> nn.Module:
        """The model that the base prepares. example, forward and output are for a base that needs them (IRS)."""
        return prepared_for(self._method, model, nvm, example, forward, output)

    def penalty(self, model: nn.Module) -> Tensor:
        """`sum ||W^T W - lambda I||_F^2` over the backbone of a prepared model, a scalar.

        Raises:
            ValueError: the model has no convolution and no linear layer.
        """
        layers = [m for m in self._method.backbone(model).modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
        if not layers:
            fail("model", "must hold a Conv2d or Linear for correctnet to regularize", type(model).__name__)
        first, *others = (orthogonality(layer.weight, self.diagonal) for layer in layers)
        return sum(others, start=first)

    def loss(
        self,
        model: nn.Module,
        x: Any,
        target: Any = None,
        *,
        criterion: Criterion | None = None,
        forward: Forward | None = None,
        output: Select | None = None,
    ) -> Tensor:
        """The base's loss plus the regularizer, a scalar. See `Method.loss`.

        Raises:
            TypeError, ValueError: as the base; or the base is a method of the user for (image, label) alone.
        """
        given = {"criterion": criterion, "forward": forward, "output": output}
        if not takes(self._method.loss, *given):  # a method of the user, for (image, label) alone
            if target is None or any(value is not None for value in given.values()):
                fail("base", "must take criterion, forward and output in its loss, for this task", self._method.name)
            return self._method.loss(model, x, target) + self.strength * self.penalty(model)
        return self._method.loss(model, x, target, **given) + self.strength * self.penalty(model)

    def check_criterion(self, criterion: Criterion | None) -> None:
        """As the base does."""
        self._method.check_criterion(criterion)

    def finish(self, model: nn.Module) -> nn.Module:
        """The plain model that the base returns."""
        return self._method.finish(model)

    def backbone(self, model: nn.Module) -> nn.Module:
        """The base's backbone."""
        return self._method.backbone(model)

    def control(self, model: nn.Module | None = None) -> Method:
        """CorrectNet around the base's control."""
        return replace(self, base=self._method.control(model))
