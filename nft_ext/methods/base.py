"""The base class of training methods: prepare a model, compute the loss of a step, return the plain model."""

from __future__ import annotations

import dataclasses
import inspect
from abc import ABC, abstractmethod
from typing import Any, ClassVar, cast

import numpy as np
from torch import Tensor, nn

from nft_ext._common.checks import fail, instance, module
from nft_ext.device import NVMDevice
from nft_ext.methods.task import Criterion, Forward, Select, Step, Task
from nft_ext.nn.conversion import convert, restore
from nft_ext.nn.replaced import copied


class Method(ABC):
    """A training method. Subclasses are frozen dataclasses; their fields are the method's options.

    In your own loop:

        prepared = method.prepare(model, nvm)
        loss = method.loss(prepared, x, target); loss.backward(); optimizer.step()
        plain = method.finish(prepared)

    The methods of nft_ext also take a batch of any structure and a criterion (`loss`).

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
            model: a plain module. It stays unchanged.
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
        """The scalar loss of one step, `loss(model, x, target)` or `loss(model, batch)`.

        A method of your own may take (model, x, target) alone. It then trains classifications of (image, label).

        Args:
            model: the prepared model.
            x: with target: the inputs, `[B, C, H, W]` for images. Without: a batch with its target, a tuple or mapping.
                Of a mapping the model gets the keys that its forward names, never labels, label, targets, target. Of a
                tuple it gets all but the last entry.
            target: `[B]`, integer labels; `[B, d1, ...]` for logits `[B, C, d1, ...]`; or class probabilities of the
                logits' shape. None: the batch holds it.
            criterion: `criterion(output, target)`, or `criterion(output, batch)` without target: the mean loss of the
                batch, a scalar. A loss of torch, such as `nn.MSELoss()`, gets the batch's target. None: cross-entropy.
            forward: `forward(model, x)`, the model's output. None: as above.
            output: what the criterion gets of the model's output, and the feedback acts on: a name, or a function of
                the output. None: the tensor; or its `logits`; or, with a criterion, the whole container of tensors.

        Raises:
            TypeError, ValueError: the target does not fit the output (`checked_target`), the batch has no inputs or no
                target, the output cannot be summed, or the criterion does not suit the method.
        """

    def check_criterion(self, criterion: Criterion | None) -> None:  # noqa: B027  (most methods take any)
        """Refuses a criterion that the method cannot train with. `fit` asks before any work.

        Raises:
            ValueError: such a criterion.
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


class TaskMethod(Method):
    """A method that trains any task. Subclasses define `_loss`."""

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
        """See `Method.loss`."""
        self.check_criterion(criterion)
        return self._loss(model, Step(Task(criterion, forward, output), x, target))

    @abstractmethod
    def _loss(self, model: nn.Module, step: Step) -> Tensor:
        """The loss of one step, a scalar."""


def takes(function: Any, *names: str) -> bool:
    """Whether a function takes all these keywords."""
    found = inspect.signature(function).parameters
    return all(name in found for name in names)


def prepared_for(
    method: Method,
    model: nn.Module,
    nvm: NVMDevice | None,
    example: Any,
    forward: Forward | None,
    output: Select | None,
) -> nn.Module:
    """`method.prepare(model, nvm)`. A method whose `prepare` needs an example of a batch gets it."""
    if takes(method.prepare, "example", "forward", "output"):
        return cast(Any, method).prepare(model, nvm, example=example, forward=forward, output=output)
    return method.prepare(model, nvm)


def _plain(value: Any) -> Any:
    """An option as JSON holds it: a method as its config, numpy's numbers as Python's."""
    if isinstance(value, Method):
        return value.config()
    return value.item() if isinstance(value, np.generic) else value
