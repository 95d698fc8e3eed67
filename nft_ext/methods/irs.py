"""IRS, intermediate representation snapshots: classifiers on intermediate features are the negative feedback."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from nft_ext.checks import fail, integer, number
from nft_ext.conversion import convert, restore
from nft_ext.device import NVMDevice
from nft_ext.methods.base import Method
from nft_ext.methods.losses import checked_gammas, gammas_shallowest_first_in_weight, total_output
from nft_ext.methods.snapshots import Point, SnapshotModel, build_classifiers, checked_points, remove_taps


@dataclass(frozen=True)
class IRS(Method):
    """Cross-entropy of Eq. 1-3 with `Out_n` a classifier on the n-th snapshot, shallowest first.

    Args:
        sigma: device sigma, in the device model's convention.
        beta: weight of the feedback.
        points: module names whose 4-D outputs are tapped, each alone (pooled to 4) or with its pooled size;
            None: the model's own `snapshot_points`.
        gammas: N feedback weights; None: `gamma_n = 10^(1-n)`, the shallowest weighs most.
        noisy_classifiers: the classifiers' weights sit on devices too; False: plain float classifiers.
        input_shape: (C, H, W) of an image; None: (channels of the first convolution, 32, 32). Only the sizes
            of the classifiers are read from it.

    Raises:
        ValueError: sigma, beta or a gamma negative or not finite; from `prepare` also unknown or unfit
            snapshot points and gammas not N long.
    """

    name: ClassVar[str] = "irs"
    sigma: float
    beta: float
    points: Sequence[str | Point] | None = None
    gammas: Sequence[float] | None = None
    noisy_classifiers: bool = True
    input_shape: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        number("sigma", self.sigma, low=0.0)
        number("beta", self.beta, low=0.0)
        object.__setattr__(self, "gammas", checked_gammas(self.gammas))
        if self.points is not None:
            object.__setattr__(self, "points", checked_points(self.points))
        if self.input_shape is not None:
            if len(self.input_shape) != 3:
                fail("input_shape", "must be (C, H, W)", self.input_shape)
            object.__setattr__(self, "input_shape", tuple(integer("input_shape", n, 1) for n in self.input_shape))

    def prepare(self, model: nn.Module, nvm: NVMDevice | None = None) -> SnapshotModel:
        """The noisy copy of `model` with one classifier a snapshot point, newly drawn from torch's generator.

        Backbone layers keep the streams they have in the plain model; the classifiers are converted as
        `snapshots.0.fc1`, ..., so no two layers share a stream.
        """
        if self.points is None and not hasattr(model, "snapshot_points"):
            fail("points", "must be given for a model without snapshot_points", type(model).__name__)
        points = self.points or checked_points(model.snapshot_points)
        if self.gammas is not None and len(self.gammas) != len(points):
            fail("gammas", f"must hold one weight a snapshot point, {len(points)}", len(self.gammas))
        classifiers = build_classifiers(copy.deepcopy(model), points, self.input_shape)
        nvm = (nvm or NVMDevice()).replace(sigma=self.sigma)
        if self.noisy_classifiers:
            classifiers = convert(nn.ModuleDict({"snapshots": classifiers}), nvm)["snapshots"]
        return SnapshotModel(convert(model, nvm), [name for name, _ in points], classifiers)

    def loss(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy of the total output of one forward and its snapshots, a scalar."""
        backbone, feedbacks = model(x, feedback=True)
        gammas = self.gammas or gammas_shallowest_first_in_weight(len(feedbacks))
        return cross_entropy(total_output(backbone, feedbacks, self.beta, gammas), target)

    def finish(self, model: nn.Module) -> nn.Module:
        """The plain backbone alone; snapshots and classifiers are gone."""
        return remove_taps(restore(model.backbone))
