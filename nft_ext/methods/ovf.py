"""OVF, oriented variational forward: the same weights, run again at larger sigma, are the negative feedback."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from nft_ext.checks import fail, integer, number
from nft_ext.contexts import noise
from nft_ext.methods.base import Method
from nft_ext.methods.losses import checked_gammas, gammas_noisiest_first_in_weight, total_output
from nft_ext.methods.batchnorm import frozen_statistics


@dataclass(frozen=True)
class OVF(Method):
    """Cross-entropy of Eq. 1-3 with `Out_n` a forward at `sigma_n = max(0, sigma + n * delta)`, n = 1..N.

    Each of the N + 1 forwards runs on an independent chip, the larger sigma reaches every noisy layer, and
    gradients flow through all of them. sigma_n does not accumulate over batches, as Algorithm 1 is printed.

    Args:
        sigma: device sigma of the backbone's forward, in the device model's convention.
        beta: weight of the feedback.
        feedbacks: N.
        delta: step of sigma from one feedback to the next; negative: ever less noise.
        gammas: N feedback weights; None: `gamma_n = 10^(n-N)`, the noisiest weighs most.
        feedback_updates_statistics: let the feedback forwards, too, move BatchNorm's running statistics, as
            the published code does. Either way each forward normalises by the statistics of its own batch.

    Raises:
        ValueError: sigma, beta or a gamma negative or not finite, feedbacks < 1, gammas not N long.
    """

    name: ClassVar[str] = "ovf"
    sigma: float
    beta: float
    feedbacks: int = 3
    delta: float = 0.05
    gammas: Sequence[float] | None = None
    feedback_updates_statistics: bool = False

    def __post_init__(self) -> None:
        number("sigma", self.sigma, low=0.0)
        number("beta", self.beta, low=0.0)
        integer("feedbacks", self.feedbacks, 1)
        number("delta", self.delta)
        object.__setattr__(self, "gammas", checked_gammas(self.gammas))
        if self.gammas is not None and len(self.gammas) != self.feedbacks:
            fail("gammas", f"must hold one weight a feedback, {self.feedbacks}", len(self.gammas))

    def sigmas(self) -> tuple[float, ...]:
        """`sigma_1 .. sigma_N`, those of the feedback forwards."""
        return tuple(max(0.0, self.sigma + n * self.delta) for n in range(1, self.feedbacks + 1))

    def loss(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy of the total output of N + 1 forwards, a scalar."""
        backbone = model(x)
        with frozen_statistics(model, enabled=not self.feedback_updates_statistics):
            feedbacks = [self._noisier(model, x, sigma) for sigma in self.sigmas()]
        gammas = self.gammas or gammas_noisiest_first_in_weight(self.feedbacks)
        return cross_entropy(total_output(backbone, feedbacks, self.beta, gammas), target)

    @staticmethod
    def _noisier(model: nn.Module, x: Tensor, sigma: float) -> Tensor:
        with warnings.catch_warnings():  # the feedback's sigma lies beyond the paper's range by design
            warnings.filterwarnings("ignore", message="sigma: the paper's range")
            with noise(model, sigma=sigma):
                return model(x)
