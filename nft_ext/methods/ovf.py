"""OVF, oriented variational forward: further forwards at larger sigma give the negative feedback."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

from torch import Tensor, nn

from nft_ext._common.checks import boolean, integer, number
from nft_ext.methods.base import TaskMethod
from nft_ext.methods.batchnorm import frozen_statistics
from nft_ext.methods.control import ScaledLogits
from nft_ext.methods.losses import (
    Gammas,
    check_feedback_options,
    checked_gammas,
    feedback_weights,
    gammas_noisiest_first_in_weight,
    total_output,
    total_weight,
)
from nft_ext.methods.task import Criterion, Step, Task, check_factor, weighted
from nft_ext.nn import noisy_layers
from nft_ext.nn.contexts import noise, shared_codes
from nft_ext.nn.step_key import StepKey


@dataclass(frozen=True)
class OVF(TaskMethod):
    """Cross-entropy, or a criterion, of Eq. 1-3 with `Out_n` a forward at `sigma_n = max(0, sigma + n * delta)`.

    n = 1..N. The feedback acts on the output that the criterion gets, tensor by tensor if it is a container.
    Each of the N + 1 forwards runs on its own chip, and gradients flow through all of them. The larger sigma applies to
    every noisy layer. Unlike the printed Algorithm 1, sigma_n starts again from sigma in every batch.

    Args:
        sigma: device sigma of the backbone's forward, in the unit of the device model.
        beta: weight of the feedback. Negative: positive feedback, a control.
        feedbacks: N.
        delta: step of sigma from one feedback to the next. A negative delta lowers the noise (the ablation "reversed
            delta sigma").
        gammas: feedback weights. None: `gamma_n = 10^(n-N)`, the noisiest weighs most. A number replaces 10. Or a
            callable gamma(n, N), or the list gamma_1 .. gamma_N.
        feedback_updates_statistics: feedback forwards update BatchNorm's running statistics, too, as in the published
            code. In any case, each forward normalises by the statistics of its own batch.
        reversed_decay: use gamma_N .. gamma_1, so the noisiest weighs least (an ablation).
        a_b, a_f: shares of backbone and feedback in Eq. 1-3; None: `1/(N+1)`. a_b "unit": the weights of all outputs
            sum to 1, for a regression.
        shared_z: all N + 1 forwards of a step use the same normals z, each scaled by its own sigma.
        published_variant: only the first and the last noisy layer get sigma_n. The published code does this to its
            ResNet-18, because it sets the larger sigma on the model object, not on the residual blocks.

    Raises:
        ValueError: sigma or a gamma is negative, one of them or beta is not finite, feedbacks < 1, gammas are not N
            long, a_b is not positive, or a_f is negative.
    """

    name: ClassVar[str] = "ovf"
    sigma: float
    beta: float
    feedbacks: int = 3
    delta: float = 0.05
    gammas: Gammas = None
    feedback_updates_statistics: bool = False
    reversed_decay: bool = False
    a_b: float | str | None = None
    a_f: float | None = None
    shared_z: bool = False
    published_variant: bool = False

    def __post_init__(self) -> None:
        check_feedback_options(self)
        integer("feedbacks", self.feedbacks, 1)
        number("delta", self.delta)
        for option in ("feedback_updates_statistics", "shared_z", "published_variant"):
            boolean(option, getattr(self, option))
        object.__setattr__(self, "gammas", checked_gammas(self.gammas, self.feedbacks))
        self.weights()

    def sigmas(self) -> tuple[float, ...]:
        """`sigma_1 .. sigma_N` of the feedback forwards."""
        return tuple(max(0.0, self.sigma + n * self.delta) for n in range(1, self.feedbacks + 1))

    def weights(self) -> tuple[float, ...]:
        """`gamma_1 .. gamma_N`, after reversal if asked for."""
        gammas = cast("float | tuple[float, ...] | None", self.gammas)  # __post_init__ made it so
        return feedback_weights(gammas, self.feedbacks, gammas_noisiest_first_in_weight, self.reversed_decay)

    def control(self, model: nn.Module | None = None) -> ScaledLogits:
        """See `methods.control_of`. `model` is not used."""
        return ScaledLogits(self.sigma, self.feedbacks, self.a_b)

    def check_criterion(self, criterion: Criterion | None) -> None:
        """Refuses weights that change the scale of a regression's output, and default ones under an own criterion."""
        total = total_weight(self.beta, self.weights(), self.a_b, self.a_f)
        check_factor(Task(criterion), "a_b", self.a_b, total)

    def _loss(self, model: nn.Module, step: Step) -> Tensor:
        key = StepKey(model)
        with shared_codes(model):
            with key.forward():
                backbone = step.output(model)
            target = step.target(backbone, model)
            with frozen_statistics(model, enabled=not self.feedback_updates_statistics):
                feedbacks = []
                for n, sigma in enumerate(self.sigmas(), 1):
                    with key.forward(0 if self.shared_z else n):
                        feedbacks.append(self._noisier(model, step, sigma))

        def total(tensors: Sequence[Tensor]) -> Tensor:
            return total_output(tensors[0], tensors[1:], self.beta, self.weights(), self.a_b, self.a_f)

        return step.loss(weighted(total, [backbone, *feedbacks]), target)

    def _noisier(self, model: nn.Module, step: Step, sigma: float) -> Any:
        reached = [model]
        if self.published_variant:
            layers = list(noisy_layers(model).values())
            reached = layers[:1] + layers[1:][-1:]
        with warnings.catch_warnings(), contextlib.ExitStack() as contexts:
            # The feedback sigma exceeds the paper's range on purpose.
            warnings.filterwarnings("ignore", message="sigma: the paper's range")
            for module in reached:
                contexts.enter_context(noise(module, sigma=sigma))
            return step.output(model)
