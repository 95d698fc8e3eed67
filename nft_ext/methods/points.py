"""Snapshot points of IRS: the tapped modules, given by name or found in the model."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import nn

from nft_ext._common.checks import did_you_mean, fail, integer, items, module

# (module name, side that its output is pooled to; None: `side_for` its channels)
Point = tuple[str, int | None]

DEFAULT_POOLED_SIZE = 4
FEATURES = 2304  # most inputs of the paper's classifiers: 64*6*6, 128*4*4, 256*3*3

# The last module of a stem is the first of these names among the model's children.
_STEM_ENDS = ("maxpool", "relu1", "relu", "act1", "bn1", "conv1")
_EMBEDDINGS = ("embedder", "embeddings")


def side_for(channels: int) -> int:
    """The largest side with `channels * side^2 <= 2304`, at least 1: 64 -> 6, 128 -> 4, 256 -> 3, as in the paper."""
    return max(1, math.isqrt(FEATURES // channels))


def checked_points(points: Sequence[str | Point]) -> tuple[Point, ...]:
    """Snapshot points as (module name, pooled size). A name alone is pooled to 4.

    Raises:
        TypeError: points is no list.
        ValueError: points are empty, a name occurs twice, or a size is below 1.
    """
    pairs = [(p, DEFAULT_POOLED_SIZE) if isinstance(p, str) else p for p in items("points", points, "module names")]
    for pair in pairs:
        if not (isinstance(pair, (tuple, list)) and len(pair) == 2 and isinstance(pair[0], str)):
            fail("points", "must hold module names or pairs (module name, pooled size)", pair)
    checked = tuple((name, size if size is None else integer(f"points[{name!r}]", size, 1)) for name, size in pairs)
    names = [name for name, _ in checked]
    if not names:
        fail("points", "must name at least one snapshot point (N >= 1)", points)
    if len(set(names)) < len(names):
        fail("points", "must name each module once", names)
    return checked


def check_names(model: nn.Module, points: Sequence[Point]) -> None:
    """Refuses names that are not modules of `model`.

    Raises:
        ValueError: a module name is unknown. The message suggests near names.
    """
    modules = dict(model.named_modules())
    for name, _ in points:
        if name not in modules:
            fail("points", f"must name modules of the model{did_you_mean(name, modules, most=3)}", name)


def snapshot_points_of(model: nn.Module, feedbacks: int | None = None) -> tuple[Point, ...]:
    """The snapshot points of a model with a known structure.

    - A model with `snapshot_points` (and `further_snapshot_points`): these.
    - `layer1`, `layer2`, ... side by side, as in torchvision's ResNets: the end of the stem (`maxpool`, else `relu`,
      ...) and every layer except the last.
    - `encoder.stages.N` beside an `embedder`, as in transformers' ResNets: the embedder and every stage except the
      last.

    The last layer or stage is no default point, because the backbone's own output follows it. It is the first further
    point. Then follow the residual blocks within the layers, shallowest first.

    Args:
        model: any module, also with a wrapper around such a model.
        feedbacks: N: the first N of default and further points. None: the default points. `IRS` sorts them by depth.

    Returns:
        Pairs (module name, pooled size).

    Raises:
        TypeError: model is not a module.
        ValueError: the structure is unknown, feedbacks < 1, or the model has fewer than N points.
    """
    module("model", model)
    if feedbacks is not None:
        feedbacks = integer("feedbacks", feedbacks, 1)
    found = _own_points(model) or _layered(model) or _staged(model)
    if found is None:
        fail(
            "points",
            "must be given for a model without snapshot_points, layer1, layer2, ... or encoder.stages",
            type(model).__name__,
        )
    default, further = found
    if feedbacks is None:
        return default
    if feedbacks > len(default + further):
        fail("feedbacks", f"must be at most {len(default + further)}, the snapshot points of this model", feedbacks)
    return (default + further)[:feedbacks]


Found = tuple[tuple[Point, ...], tuple[Point, ...]] | None


def _own_points(model: nn.Module) -> Found:
    points = getattr(model, "snapshot_points", None)
    return (checked_points(points), tuple(getattr(model, "further_snapshot_points", ()))) if points else None


def _layered(model: nn.Module) -> Found:
    for prefix, parent in model.named_modules():
        children = dict(parent.named_children())
        layers = [f"layer{n}" for n in range(1, 1 + len(children)) if f"layer{n}" in children]
        stem = next((name for name in _STEM_ENDS if name in children), None)
        if len(layers) >= 2 and stem is not None:
            return _default_and_further(_join(prefix, stem), {_join(prefix, n): children[n] for n in layers})
    return None


def _staged(model: nn.Module) -> Found:
    for prefix, parent in model.named_modules():
        children = dict(parent.named_children())
        stages = getattr(children.get("encoder"), "stages", None)
        stem = next((name for name in _EMBEDDINGS if name in children), None)
        if isinstance(stages, nn.ModuleList) and len(stages) >= 2 and stem is not None:
            path = _join(prefix, "encoder.stages")
            return _default_and_further(_join(prefix, stem), {f"{path}.{n}": stage for n, stage in enumerate(stages)})
    return None


def _default_and_further(stem: str, stages: dict[str, nn.Module]) -> Found:
    *inner, last = stages
    blocks = []
    for name, stage in stages.items():
        held = getattr(stage, "layers", stage)  # a stage of transformers keeps its residual blocks in `layers`
        if isinstance(held, (nn.Sequential, nn.ModuleList)):
            path = name if held is stage else f"{name}.layers"
            blocks += [f"{path}.{n}" for n in range(len(held) - 1)]  # the last block's output is the stage's
    return tuple((name, None) for name in (stem, *inner)), tuple((name, None) for name in (last, *blocks))


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name
