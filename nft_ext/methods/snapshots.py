"""The classifiers of IRS on intermediate features, which forward hooks tap."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

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
        self.version = getattr(output, "_version", None)
        self.seen.append(self)


class SnapshotModel(nn.Module):
    """A backbone and its snapshot classifiers. Without `feedback` it computes the backbone only."""

    def __init__(self, backbone: nn.Module, names: Sequence[str], snapshots: nn.ModuleList) -> None:
        super().__init__()
        self.backbone = backbone
        self.snapshots = snapshots
        self.taps = attach_taps(backbone, names, Tap)

    def forward(self, x: Tensor, feedback: bool = False) -> Any:
        """`[B, classes]`. With feedback `([B, classes], [Out_1 .. Out_N])`, shallowest first."""
        if not feedback:
            return self.backbone(x)
        output, features = collect(self.backbone, self.taps, x)
        return logits_of(output), [head(feature) for head, feature in zip(self.snapshots, features, strict=True)]


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


def collect(model: nn.Module, taps: Sequence[Tap], x: Tensor) -> tuple[Any, list[Any]]:
    """The output of `model(x)` and the feature of each tap, None if its module did not run."""
    for tap in taps:
        tap.wanted = True
    try:
        output = model(x)
        return output, [tap.feature for tap in taps]
    finally:
        for tap in taps:
            tap.wanted, tap.feature = False, None


def build_classifiers(
    model: nn.Module, points: Sequence[Point], input_shape: tuple[int, int, int] | None, by_depth: bool = False
) -> tuple[list[str], nn.ModuleList]:
    """Names of the tapped modules, and one classifier per module.

    One blank image, forwarded in eval mode, gives the classifiers' sizes. They start as the model did (`init_of`).

    Args:
        model: a plain module. It is changed, so give a copy.
        points: (module name, pooled size), shallowest first.
        input_shape: (C, H, W) of the blank image; None: (channels of the first convolution, 32, 32).
        by_depth: sort the points by the order in which the forward completes them.

    Raises:
        ValueError: a module name is unknown; a module does not run; its output is not 4-D or is changed in place later;
            or the model does not accept the image shape.
    """
    check_names(model, points)
    output, features, rewritten, finished = _probe(model, [name for name, _ in points], input_shape)
    if output.dim() != 2:
        fail("model", "must give logits [B, classes]", _described(output))
    chosen: list[tuple[int, str, nn.Module]] = []
    for (name, pooled), feature, changed, when in zip(points, features, rewritten, finished, strict=True):
        if feature is None:
            fail("points", "must name modules that run in the model's forward", name)
        if not (isinstance(feature, Tensor) and feature.dim() == 4):
            fail("points", f"must name modules with a 4-D output [B, C, H, W]; {name!r}", _described(feature))
        if changed:
            fail(
                "points",
                "must name modules whose output no later module changes in place; name the later module, "
                "for example an in-place ReLU",
                name,
            )
        channels = feature.shape[1]
        head = SnapshotClassifier(channels, side_for(channels) if pooled is None else pooled, output.shape[1])
        chosen.append((when, name, head))
    if by_depth:
        chosen.sort(key=lambda entry: entry[0])
    classifiers = initialised(nn.ModuleList(head for _, _, head in chosen), init_of(model))
    return [name for _, name, _ in chosen], cast(nn.ModuleList, classifiers.to(output))


def _probe(
    model: nn.Module, names: Sequence[str], input_shape: tuple[int, int, int] | None
) -> tuple[Tensor, list[Any], list[bool], list[int]]:
    """Logits of a blank image. Per tap: feature, whether it was changed in place later, order (-1: did not run)."""
    if input_shape is None:
        first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
        if first is None:
            fail("input_shape", "must be given, (C, H, W), for a model without convolution", input_shape)
        input_shape = (first.in_channels, 32, 32)
    image = next(model.parameters()).new_zeros(1, *input_shape)
    seen: list[VersionTap] = []
    taps = attach_taps(model, names, partial(VersionTap, seen))
    try:
        with torch.no_grad():
            output, features = collect(model.eval(), taps, image)
    except (RuntimeError, ValueError) as error:
        rule = f"must be the (C, H, W) of an image that the model accepts ({error})"
        raise ValueError(f"input_shape: {rule}; got {input_shape}") from error
    finally:
        remove_taps(model)
    rewritten = [getattr(f, "_version", None) != tap.version for f, tap in zip(features, taps, strict=True)]
    finished = [max((turn for turn, other in enumerate(seen) if other is tap), default=-1) for tap in taps]
    return logits_of(output), features, rewritten, finished


def _described(value: Any) -> str:
    return f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
