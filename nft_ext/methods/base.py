"""The base class of training methods: prepare a model, compute the loss of a step, return the plain model."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from typing import Any, ClassVar, cast

import numpy as np
from torch import Tensor, nn

from nft_ext._common.checks import fail, instance, module
from nft_ext.device import NVMDevice
from nft_ext.nn.conversion import convert, restore
from nft_ext.nn.replaced import copied


class Method(ABC):
    """A training method. Subclasses are frozen dataclasses; their fields are the method's options.

    In your own loop:

        prepared = method.prepare(model, nvm)
        loss = method.loss(prepared, x, target); loss.backward(); optimizer.step()
        plain = method.finish(prepared)

    Attributes:
        name: the method's name, for `methods.build`.
        sigma: device sigma of training and validation, in the unit of the device model. None: training without noise.
    """

    name: ClassVar[str]
    # Any, because each subclass narrows it: float, None or a property.
    sigma: Any

    def config(self) -> dict[str, Any]:
        """The name and every option, JSON-able. `methods.build(**config)` rebuilds the method."""
        options = {f.name: getattr(self, f.name) for f in dataclasses.fields(cast(Any, self))}
        return {"name": self.name} | {name: _plain(value) for name, value in options.items()}

    def prepare(self, model: nn.Module, nvm: NVMDevice | None = None) -> nn.Module:
        """A copy of the plain `model` with noisy layers at the method's sigma, for `loss`.

        Args:
            model: a plain module, `[B, C, H, W] -> [B, classes]`. It stays unchanged.
            nvm: the device model; its sigma is replaced by the method's. None: `NVMDevice()`.

        Returns:
            The prepared model. Without a sigma it is a plain copy.

        Raises:
            TypeError: model is no module, or nvm is no NVMDevice.
        """
        module("model", model)
        device = self._device(nvm)
        if self.sigma is None:
            return copied(model)
        return convert(model, device)

    def _device(self, nvm: NVMDevice | None) -> NVMDevice:
        """The device model at the method's sigma."""
        found = NVMDevice() if nvm is None else instance("nvm", nvm, NVMDevice, "an NVMDevice")
        return found if self.sigma is None else found.replace(sigma=self.sigma)

    @abstractmethod
    def loss(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        """The scalar loss of one step.

        Args:
            model: the prepared model.
            x: `[B, C, H, W]`, a batch of images.
            target: `[B]`, integer labels; `[B, d1, ...]` for logits `[B, C, d1, ...]`; or class probabilities of the
                logits' shape.

        Raises:
            TypeError, ValueError: the target does not fit the logits, for example a regression's (`checked_target`).
        """

    def finish(self, model: nn.Module) -> nn.Module:
        """A plain copy of the prepared model, with the state_dict keys of the original model."""
        return copied(model) if self.sigma is None else restore(model)

    def backbone(self, model: nn.Module) -> nn.Module:
        """The part of the prepared model that `finish` copies. This is not a copy."""
        return model

    def control(self, model: nn.Module | None = None) -> Method:
        """See `methods.control_of`.

        Raises:
            ValueError: the method has no feedback.
        """
        fail("method", "must have feedback (ovf, irs) to have a control", self.name)


def _plain(value: Any) -> Any:
    """An option as JSON holds it: a method as its config, numpy's numbers as Python's."""
    if isinstance(value, Method):
        return value.config()
    return value.item() if isinstance(value, np.generic) else value
