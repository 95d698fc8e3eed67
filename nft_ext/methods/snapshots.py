"""The classifiers of IRS on intermediate features, which forward hooks tap."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NoReturn, cast

import torch
from torch import Tensor, nn

from nft_ext._common.checks import fail
from nft_ext._common.initialisation import init_of, initialised
from nft_ext._common.logits import logits_of
from nft_ext.methods.points import Point, check_names, side_for

HIDDEN = 512


class SnapshotClassifier(nn.Module):
    """Adaptive average pool, fc -> 512, ReLU, fc -> classes: `[B, C, H, W] -> [B, classes]`."""

    def __init__(self, channels: int, pooled: int, classes: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(pooled)
        self.fc1 = nn.Linear(channels * pooled * pooled, HIDDEN)
        self.fc2 = nn.Linear(HIDDEN, classes)

    def forward(self, feature: Tensor) -> Tensor:
        return self.fc2(torch.relu(self.fc1(self.pool(feature).flatten(1))))


class PositionClassifier(nn.Module):
    """fc -> 512, ReLU, fc -> classes, over the last dim: `[B, D] -> [B, classes]`, `[B, T, D] -> [B, T, classes]`.

    pooled: the mean over positions first, `[B, T, D] -> [B, classes]`.
    """

    def __init__(self, features: int, classes: int, pooled: bool) -> None:
        super().__init__()
        self.pooled = pooled
        self.fc1 = nn.Linear(features, HIDDEN)
        self.fc2 = nn.Linear(HIDDEN, classes)

    def forward(self, feature: Tensor) -> Tensor:
        return self.fc2(torch.relu(self.fc1(feature.mean(dim=1) if self.pooled else feature)))


class Tap:
    """A forward hook that keeps a module's output while `wanted`. An object, so it is copied with its model."""

    def __init__(self) -> None:
        self.wanted = False
        self.feature: Any = None

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if self.wanted:
            self.feature = output


class VersionTap(Tap):
    """A tap that also records the output's version, which counts in-place changes, and the order of the calls."""

    version: int | None = None

    def __init__(self, seen: list[VersionTap]) -> None:
        super().__init__()
        self.seen = seen

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> None:
        super().__call__(module, inputs, output)
        self.version = getattr(_feature(output), "_version", None)
        self.seen.append(self)


class SnapshotModel(nn.Module):
    """A backbone and its snapshot classifiers. Without `feedback` it computes the backbone only."""

    def __init__(self, backbone: nn.Module, names: Sequence[str], snapshots: nn.ModuleList) -> None:
        super().__init__()
        self.backbone = backbone
        self.snapshots = snapshots
        self.taps = attach_taps(backbone, names, Tap)

    @property
    def forward_of(self) -> nn.Module:
        """The module whose `forward` names the inputs."""
        return self.backbone

    def forward(self, *args: Any, feedback: bool = False, **kwargs: Any) -> Any:
        """The backbone's output. With feedback `(output, [Out_1 .. Out_N])`, shallowest first."""
        if not feedback:
            return self.backbone(*args, **kwargs)
        output, features = collect(lambda: self.backbone(*args, **kwargs), self.taps)
        return output, [head(feature) for head, feature in zip(self.snapshots, features, strict=True)]


class WithFeedback:
    """A prepared model whose calls keep the outputs of the snapshots. It stands in for the model in one step.

    Attributes:
        forward_of: the model.
        feedbacks: `[Out_1 .. Out_N]` of every call.
    """

    def __init__(self, model: nn.Module) -> None:
        self.forward_of = model
        self.feedbacks: list[list[Tensor]] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        output, feedbacks = self.forward_of(*args, feedback=True, **kwargs)
        self.feedbacks.append(feedbacks)
        return output

    def __getattr__(self, name: str) -> Any:
        return getattr(self.forward_of, name)


def attach_taps(model: nn.Module, names: Sequence[str], kind: Callable[[], Tap]) -> list[Any]:
    """Adds one tap per named module and returns the taps in order."""
    taps = [kind() for _ in names]
    for name, tap in zip(names, taps, strict=True):
        model.get_submodule(name).register_forward_hook(tap)
    return taps


def remove_taps(model: nn.Module) -> nn.Module:
    """`model` itself without its taps. Other hooks stay."""
    for module in model.modules():
        for handle, hook in list(module._forward_hooks.items()):
            if isinstance(hook, Tap):
                del module._forward_hooks[handle]
    return model


def collect(run: Callable[[], Any], taps: Sequence[Tap]) -> tuple[Any, list[Any]]:
    """The output of `run()` and the feature of each tap, None if its module did not run."""
    for tap in taps:
        tap.wanted = True
    try:
        output = run()
        return output, [_feature(tap.feature) for tap in taps]
    finally:
        for tap in taps:
            tap.wanted, tap.feature = False, None


def build_classifiers(
    model: nn.Module, points: Sequence[Point], run: Callable[[nn.Module], Any], by_depth: bool = False
) -> tuple[list[str], nn.ModuleList]:
    """Names of the tapped modules, and one classifier per module.

    One forward in eval mode gives the classifiers' sizes. They start as the model did (`init_of`).

    Args:
        model: a plain module. It is changed, so give a copy.
        points: (module name, pooled size), shallowest first.
        run: one forward of the model it is given, its logits.
        by_depth: sort the points by the order in which the forward completes them.

    Raises:
        ValueError: a module name is unknown; a module does not run; its output has no classifier or is changed in place
            later; or the model gives neither `[B, classes]` nor `[B, T, classes]`.
    """
    check_names(model, points)
    output, features, rewritten, finished = _probe(model, [name for name, _ in points], run)
    if not isinstance(output, Tensor) or output.dim() not in (2, 3) or output.shape[-1] < 2:
        fail(
            "model",
            "must give logits [B, C] or [B, T, C] of at least two classes for irs",
            _described(output),
        )
    chosen: list[tuple[int, str, nn.Module]] = []
    for (name, pooled), feature, changed, when in zip(points, features, rewritten, finished, strict=True):
        if feature is None:
            fail("points", "must name modules that run in the model's forward", name)
        if changed:
            fail(
                "points",
                "must name modules whose output no later module changes in place; name the later module, "
                "for example an in-place ReLU",
                name,
            )
        chosen.append((when, name, _classifier(name, feature, pooled, output)))
    if by_depth:
        chosen.sort(key=lambda entry: entry[0])
    classifiers = initialised(nn.ModuleList(head for _, _, head in chosen), init_of(model))
    return [name for _, name, _ in chosen], cast(nn.ModuleList, classifiers.to(output))


def blank_image(model: nn.Module, input_shape: tuple[int, int, int] | None) -> Callable[[nn.Module], Any]:
    """The forward of one blank image, for `build_classifiers`.

    Args:
        model: the plain module.
        input_shape: (C, H, W); None: (channels of the first convolution, 32, 32).

    Raises:
        ValueError: no shape, or at the forward, the model does not accept it.
    """
    if input_shape is None:
        first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
        if first is None:
            fail("input_shape", "must be given, (C, H, W), for a model without convolution", input_shape)
        input_shape = (first.in_channels, 32, 32)

    def run(model: nn.Module) -> Any:
        image = next(model.parameters()).new_zeros(1, *input_shape)
        try:
            return logits_of(model(image))
        except (RuntimeError, ValueError) as error:
            rule = f"must be the (C, H, W) of an image that the model accepts ({error})"
            raise ValueError(f"input_shape: {rule}; got {input_shape}") from error

    return run


def _classifier(name: str, feature: Any, pooled: int | None, output: Tensor) -> nn.Module:
    """The classifier of one feature for the model's `output`, [B, classes] or [B, T, classes]."""
    dims = feature.dim() if isinstance(feature, Tensor) else 0
    classes = output.shape[-1]
    if dims == 4 and output.dim() == 2:
        channels = feature.shape[1]
        return SnapshotClassifier(channels, side_for(channels) if pooled is None else pooled, classes)
    if feature is output:
        fail("points", "must name modules before the one that gives the model's output", name)
    if dims == 3 and feature.shape[0] == feature.shape[1] and output.dim() == 2:
        rule = "must show by an example whether their output is [B, T, D]: one with another number of examples than T"
        fail("points", f"{rule}; {name!r}", _described(feature))
    if dims in (2, 3) and output.dim() == 2 and len(feature) == len(output):
        return PositionClassifier(feature.shape[-1], classes, pooled=dims == 3)
    if dims == 3 and output.dim() == 3 and feature.shape[:2] == output.shape[:2]:
        return PositionClassifier(feature.shape[-1], classes, pooled=False)
    return _no_classifier(name, feature, output)


def _no_classifier(name: str, feature: Any, output: Tensor) -> NoReturn:
    shapes = "[B, C, H, W], [B, T, D] or [B, D]" if output.dim() == 2 else f"[B, {output.shape[1]}, D]"
    fail("points", f"must name modules whose output is {shapes}; {name!r}", _described(feature))


def _feature(output: Any) -> Any:
    """The feature in a module's output. Layers of transformers return a tuple that begins with it."""
    return output[0] if isinstance(output, (tuple, list)) and output else output


def _probe(
    model: nn.Module, names: Sequence[str], run: Callable[[nn.Module], Any]
) -> tuple[Any, list[Any], list[bool], list[int]]:
    """The output of one forward. Per tap: feature, whether it was changed in place later, order (-1: did not run)."""
    seen: list[VersionTap] = []
    taps = attach_taps(model, names, partial(VersionTap, seen))
    model.eval()
    try:
        with torch.no_grad():
            output, features = collect(lambda: run(model), taps)
    finally:
        remove_taps(model)
    rewritten = [getattr(f, "_version", None) != tap.version for f, tap in zip(features, taps, strict=True)]
    finished = [max((turn for turn, other in enumerate(seen) if other is tap), default=-1) for tap in taps]
    return output, features, rewritten, finished


def _described(value: Any) -> str:
    return f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
