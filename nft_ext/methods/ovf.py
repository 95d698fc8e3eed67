"""OVF, oriented variational forward: the same weights, run again at larger sigma, are the negative feedback."""

from __future__ import annotations

import contextlib
import warnings
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from nft_ext._common.checks import boolean, integer, number
from nft_ext._common.logits import logits_of
from nft_ext.methods.base import Method
from nft_ext.methods.batchnorm import frozen_statistics
from nft_ext.methods.control import ScaledLogits
from nft_ext.methods.losses import (
    Gammas,
    check_feedback_options,
    checked_gammas,
    feedback_weights,
    gammas_noisiest_first_in_weight,
    total_output,
)
from nft_ext.nn import noisy_layers
from nft_ext.nn.contexts import chips, noise, shared_codes
from nft_ext.ops.keys import fresh_key


@dataclass(frozen=True)
class OVF(Method):
    """Cross-entropy of Eq. 1-3 with `Out_n` a forward at `sigma_n = max(0, sigma + n * delta)`, n = 1..N.

    Each of the N + 1 forwards runs on an independent chip, the larger sigma reaches every noisy layer, and
    gradients flow through all of them. sigma_n does not accumulate over batches, as Algorithm 1 is printed.

    Args:
        sigma: device sigma of the backbone's forward, in the device model's convention.
        beta: weight of the feedback.
        feedbacks: N.
        delta: step of sigma from one feedback to the next; negative: ever less noise (the ablation "reversed delta
            sigma").
        gammas: feedback weights: None for `gamma_n = 10^(n-N)`, the noisiest weighs most; a number in place of 10; a
            callable gamma(n, N); or gamma_1 .. gamma_N.
        feedback_updates_statistics: let the feedback forwards, too, move BatchNorm's running statistics, as
            the published code does. Either way each forward normalises by the statistics of its own batch.
        reversed_decay: gamma_N .. gamma_1 in place of gamma_1 .. gamma_N (an ablation): the noisiest weighs least.
        a_b, a_f: shares of backbone and feedback in Eq. 1-3; None: `1/(N+1)`.
        shared_z: the N + 1 forwards of a step take the same normals z, each scaled by its sigma: one chip, ever
            noisier.
        published_variant: sigma_n reaches the first and the last noisy layer only (stem and classifier), the others
            stay at sigma: what the published code does to its ResNet-18, where the larger sigma is set on the model
            object alone.

    Raises:
        ValueError: sigma, beta or a gamma negative or not finite, feedbacks < 1, gammas not N long, a_b not positive,
            a_f negative.
    """

    name: ClassVar[str] = "ovf"
    sigma: float
    beta: float
    feedbacks: int = 3
    delta: float = 0.05
    gammas: Gammas = None
    feedback_updates_statistics: bool = False
    reversed_decay: bool = False
    a_b: float | None = None
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
        """`sigma_1 .. sigma_N`, those of the feedback forwards."""
        return tuple(max(0.0, self.sigma + n * self.delta) for n in range(1, self.feedbacks + 1))

    def weights(self) -> tuple[float, ...]:
        """`gamma_1 .. gamma_N` in force."""
        return feedback_weights(self.gammas, self.feedbacks, gammas_noisiest_first_in_weight, self.reversed_decay)

    def control(self, model: nn.Module | None = None) -> ScaledLogits:
        """See `methods.control_of`; the model is not needed."""
        return ScaledLogits(self.sigma, self.feedbacks, self.a_b)

    def loss(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy of the total output of N + 1 forwards, a scalar."""
        with shared_codes(model), self._chip(model):
            backbone = logits_of(model(x))
            with frozen_statistics(model, enabled=not self.feedback_updates_statistics):
                feedbacks = [self._noisier(model, x, sigma) for sigma in self.sigmas()]
        output = total_output(backbone, feedbacks, self.beta, self.weights(), self.a_b, self.a_f)
        return cross_entropy(output, target)

    def _chip(self, model: nn.Module) -> contextlib.AbstractContextManager:
        """With shared_z, one key of the training domain for all forwards of the step."""
        if not self.shared_z:
            return contextlib.nullcontext()
        first = next(iter(noisy_layers(model).values()))
        return chips(model, key=fresh_key(first.weight))

    def _noisier(self, model: nn.Module, x: Tensor, sigma: float) -> Tensor:
        reached = [model]
        if self.published_variant:
            layers = list(noisy_layers(model).values())
            reached = layers[:1] + layers[1:][-1:]
        with warnings.catch_warnings(), contextlib.ExitStack() as contexts:
            # the feedback's sigma lies beyond the paper's range by design
            warnings.filterwarnings("ignore", message="sigma: the paper's range")
            for module in reached:
                contexts.enter_context(noise(module, sigma=sigma))
            return logits_of(model(x))
