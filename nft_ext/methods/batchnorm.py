"""Freezes BatchNorm's running statistics during the feedback forwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _NormBase


@contextmanager
def frozen_statistics(model: nn.Module, enabled: bool = True) -> Iterator[None]:
    """Inside, normalisation layers in training mode use batch statistics and do not update the running statistics.

    Running statistics must describe the activations at the backbone's sigma, because the network is evaluated there.
    Layers in eval mode do not change.
    """
    tracking = [m for m in model.modules() if isinstance(m, _NormBase) and m.training and m.track_running_stats]
    for module in tracking if enabled else ():
        module.track_running_stats = False
    try:
        yield
    finally:
        for module in tracking if enabled else ():
            module.track_running_stats = True
