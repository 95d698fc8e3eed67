"""What every training method offers: how a model is prepared, what a step's loss is, what remains at the end."""

from __future__ import annotations

import copy
import dataclasses
from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import Tensor, nn

from nft_ext._common.checks import fail
from nft_ext.device import NVMDevice
from nft_ext.nn.conversion import convert, restore


class Method(ABC):
    """A training method; subclasses are frozen dataclasses whose fields are its options.

    In anybody's own loop:

        prepared = method.prepare(model, nvm)
        loss = method.loss(prepared, x, target); loss.backward(); optimizer.step()
        plain = method.finish(prepared)

    Attributes:
        name: the method's name, as `methods.build` takes it.
        sigma: the device sigma trained (and selected) at, in the device model's own convention; None: trained
            without noise.
    """

    name: ClassVar[str]
    sigma: float | None

    def config(self) -> dict[str, Any]:
        """The name and every option, JSON-able; `methods.build(**config)` makes the method again."""
        options = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # type: ignore[arg-type]
        return {"name": self.name} | {k: v.config() if isinstance(v, Method) else v for k, v in options.items()}

    def prepare(self, model: nn.Module, nvm: NVMDevice | None = None) -> nn.Module:
        """A copy of the plain `model`, ready for `loss`: every layer noisy at the method's sigma.

        Args:
            model: a plain module, `[B, C, H, W] -> [B, classes]`; not changed.
            nvm: the device model, its sigma replaced by the method's; None: `NVMDevice()`.
        """
        if self.sigma is None:
            return copy.deepcopy(model)
        return convert(model, (nvm or NVMDevice()).replace(sigma=self.sigma))

    @abstractmethod
    def loss(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        """The scalar loss of one step.

        Args:
            model: what `prepare` gave.
            x: `[B, C, H, W]`.
            target: `[B]`, int64 labels.
        """

    def finish(self, model: nn.Module) -> nn.Module:
        """A plain copy of the prepared model: no noise, no helpers, the state_dict keys of the plain model."""
        return copy.deepcopy(model) if self.sigma is None else restore(model)

    def backbone(self, model: nn.Module) -> nn.Module:
        """The part of the prepared model that `finish` keeps; not a copy."""
        return model

    def control(self, model: nn.Module | None = None) -> Method:
        """See `methods.control_of`, which also says when `model` is needed.

        Raises:
            ValueError: a method without feedback.
        """
        fail("method", "must have feedback (ovf, irs) to have a control", self.name)
