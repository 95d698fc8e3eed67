"""IRS, intermediate representation snapshots: classifiers on intermediate features give the feedback.

The paper calls it negative. The classifiers' last layers are free, so its sign is what training makes of it
(docs/reference/methods.md, section 3).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

from torch import Tensor, nn

from nft_ext._common.checks import boolean, fail, integer, items
from nft_ext.device import NVMDevice
from nft_ext.methods.base import TaskMethod
from nft_ext.methods.control import ScaledLogits
from nft_ext.methods.losses import (
    Gammas,
    check_feedback_options,
    checked_gammas,
    feedback_weights,
    gammas_shallowest_first_in_weight,
    total_output,
    total_weight,
)
from nft_ext.methods.points import Point, checked_points, snapshot_points_of
from nft_ext.methods.snapshots import SnapshotModel, WithFeedback, blank_image, build_classifiers, remove_taps
from nft_ext.methods.task import Criterion, Forward, Select, Step, Task, check_factor
from nft_ext.nn.chip_inputs import moved
from nft_ext.nn.conversion import convert, restore
from nft_ext.nn.step_key import StepKey


@dataclass(frozen=True)
class IRS(TaskMethod):
    """Cross-entropy of Eq. 1-3 with `Out_n` a classifier on the n-th snapshot, shallowest first.

    It trains classifiers: of an example, `[B, classes]`, or of every position of a sequence, `[B, T, classes]`.

    Args:
        sigma: device sigma, in the unit of the device model.
        beta: weight of the feedback. Its sign has no effect on what training can reach: the classifiers' last layers
            are free and start symmetrically, so turning the sign equals turning theirs, bit for bit.
        points: names of the tapped modules, shallowest first. An output [B, C, H, W] is pooled to 4 x 4. A pair (name,
            size) sets the pooled size; size None: the largest with at most 2304 classifier inputs. For [B, classes],
            outputs [B, T, D] are averaged over T, and [B, D] are taken as they are. For [B, T, classes], outputs are
            [B, T, D]. None: the model's own points, see `methods.snapshot_points_of`.
        gammas: feedback weights. None: `gamma_n = 10^(1-n)`, the shallowest weighs most. A number replaces 10. Or a
            callable gamma(n, N), with feedbacks or points given. Or the list gamma_1 .. gamma_N.
        noisy_classifiers: True: the classifiers' weights sit on devices, too. False: plain classifiers (an ablation).
        input_shape: (C, H, W) of an image, used only to find the classifiers' sizes. None: (channels of the first
            convolution, 32, 32).
        feedbacks: N, the number of the model's own points to use. None: its default points.
        reversed_decay: use gamma_N .. gamma_1, so the deepest weighs most (an ablation).
        a_b, a_f: shares of backbone and feedback in Eq. 1-3; None: `1/(N+1)`.

    Raises:
        ValueError: sigma or a gamma is negative, one of them or beta is not finite, feedbacks < 1, a_b is not positive,
            or a_f is negative. `prepare` also refuses unsuitable snapshot points and gammas that are not N long.
    """

    name: ClassVar[str] = "irs"
    sigma: float
    beta: float
    points: Sequence[str | Point] | None = None
    gammas: Gammas = None
    noisy_classifiers: bool = True
    input_shape: tuple[int, int, int] | None = None
    feedbacks: int | None = None
    reversed_decay: bool = False
    a_b: float | str | None = None
    a_f: float | None = None

    def __post_init__(self) -> None:
        check_feedback_options(self)
        boolean("noisy_classifiers", self.noisy_classifiers)
        if self.feedbacks is not None:
            integer("feedbacks", self.feedbacks, 1)
        if self.points is not None:
            object.__setattr__(self, "points", checked_points(self.points))
            if self.feedbacks not in (None, len(self.points)):
                fail("feedbacks", f"must be left out or be the number of points, {len(self.points)}", self.feedbacks)
        known = self.feedbacks if self.points is None else len(self.points)
        object.__setattr__(self, "gammas", checked_gammas(self.gammas, known))
        if self.input_shape is not None:
            shape = items("input_shape", self.input_shape, "three integers, (C, H, W)")
            if len(shape) != 3:
                fail("input_shape", "must be (C, H, W)", self.input_shape)
            object.__setattr__(self, "input_shape", tuple(integer("input_shape", n, 1) for n in shape))

    def control(self, model: nn.Module | None = None) -> ScaledLogits:
        """See `methods.control_of`.

        Raises:
            ValueError: N follows from the model, and `model` is None.
        """
        if self.feedbacks is not None:
            feedbacks = self.feedbacks
        elif self.points is not None:
            feedbacks = len(self.points)
        elif model is not None:
            feedbacks = len(self._points(model))
        else:
            fail("model", "must be given to the control of an irs without points and feedbacks", model)
        return ScaledLogits(self.sigma, feedbacks, self.a_b)

    def prepare(
        self,
        model: nn.Module,
        nvm: NVMDevice | None = None,
        *,
        example: Any = None,
        forward: Forward | None = None,
        output: Select | None = None,
    ) -> SnapshotModel:
        """A noisy copy of `model` with one new classifier per snapshot point, drawn from torch's generator.

        Args:
            model, nvm: as for every method.
            example: a batch as `loss` gets it, for models of other inputs than images. None: a blank image.
            forward, output: as for `loss`, with an example.

        The classifiers start as the model did, if it is a network of `nft_ext.models` (`init`).

        The backbone's layers keep the random streams of the plain model. The classifiers are named `snapshots.0.fc1`
        and so on, so no two layers share a stream.

        Raises:
            TypeError, ValueError: snapshot points without a classifier, gammas that are not N long, or forward or
                output without an example.
        """
        points = self._points(model)
        self._weights(len(points))
        found = self.points is None
        if example is not None:
            task, place = Task(None, forward, output), next(model.parameters()).device
            run = lambda copied: task.run(copied, moved(example, place), True)  # noqa: E731
        elif forward is not None or output is not None:
            fail("example", "must be given with forward and output, which make the logits of a batch", None)
        else:
            run = blank_image(model, self.input_shape)
        names, classifiers = build_classifiers(copy.deepcopy(model), points, run, by_depth=found)
        nvm = self._device(nvm)
        if self.noisy_classifiers:
            holder = convert(nn.ModuleDict({"snapshots": classifiers}), nvm)
            classifiers = cast(nn.ModuleList, holder.get_submodule("snapshots"))
        return SnapshotModel(convert(model, nvm), names, classifiers)

    def _points(self, model: nn.Module) -> Sequence[Point]:
        return snapshot_points_of(model, self.feedbacks) if self.points is None else checked_points(self.points)

    def _weights(self, feedbacks: int) -> tuple[float, ...]:
        gammas = checked_gammas(self.gammas, feedbacks)
        return feedback_weights(gammas, feedbacks, gammas_shallowest_first_in_weight, self.reversed_decay)

    def check_criterion(self, criterion: Criterion | None) -> None:
        """Refuses a regression, and the default weights under a criterion of your own.

        Raises:
            ValueError: such a criterion.
        """
        task = Task(criterion)
        if task.scale == "values":
            rule = "must be of a classification for irs: its classifiers fit any value, so the backbone need not"
            fail("criterion", rule, getattr(criterion, "__name__", type(criterion).__name__))
        if task.scale == "unknown" and self.a_b is None:
            check_factor(task, "a_b", self.a_b, total_weight(self.beta, [], self.a_b, self.a_f))

    def _loss(self, model: nn.Module, step: Step) -> Tensor:
        watched = WithFeedback(model)
        with StepKey(model).forward():
            backbone = step.output(watched)
        if len(watched.feedbacks) != 1:
            calls = f"{len(watched.feedbacks)} calls"
            fail("forward", "must call the model once for irs, whose snapshots it taps", calls)
        feedbacks = watched.feedbacks[0]
        if not isinstance(backbone, Tensor):
            rule = "must select the tensor of logits for irs"
            fail("output", rule, type(backbone).__name__, TypeError)
        target = step.target(backbone, model)
        total = total_output(backbone, feedbacks, self.beta, self._weights(len(feedbacks)), self.a_b, self.a_f)
        return step.loss(total, target)

    def finish(self, model: nn.Module) -> nn.Module:
        """The plain backbone, without snapshots and classifiers."""
        return remove_taps(restore(self.backbone(model)))

    def backbone(self, model: nn.Module) -> nn.Module:
        """The backbone of the prepared model, also inside a wrapper such as DistributedDataParallel."""
        return next(m for m in model.modules() if isinstance(m, SnapshotModel)).backbone
