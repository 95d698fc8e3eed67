"""Freezes BatchNorm's running statistics during the feedback forwards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from nft_ext.nn import recomputation
from nft_ext.nn.structure import modules_of


@contextmanager
def frozen_statistics(model: nn.Module, enabled: bool = True) -> Iterator[None]:
    """Inside, normalisation layers in training mode use batch statistics and do not update the running statistics.

    Running statistics must describe the activations at the backbone's sigma, because the network is evaluated there.
    Layers in eval mode do not change. Activation checkpointing may run a forward again later: the statistics are
    frozen there too.
    """
    if not enabled:
        yield
        return
    tracking = [m for m in modules_of(model) if isinstance(m, _NormBase) and m.training and m.track_running_stats]
    with recomputation.repeated(lambda: _not_tracking(tracking)), _not_tracking(tracking):
        yield


@contextmanager
def _not_tracking(layers: Sequence[_NormBase]) -> Iterator[None]:
    before = [layer.track_running_stats for layer in layers]
    for layer in layers:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer, flag in zip(layers, before):
            layer.track_running_stats = flag
