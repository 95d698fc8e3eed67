"""Keeping BatchNorm's running statistics still during the feedback forwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _NormBase


@contextmanager
def frozen_statistics(model: nn.Module, enabled: bool = True) -> Iterator[None]:
    """Inside, normalisation layers in training mode use batch statistics but leave the running ones alone.

    The evaluated network runs at the backbone's sigma; statistics gathered at a feedback's larger sigma would
    describe other activations. Layers in eval mode are not touched.
    """
    tracking = [m for m in model.modules() if isinstance(m, _NormBase) and m.training and m.track_running_stats]
    for module in tracking if enabled else ():
        module.track_running_stats = False
    try:
        yield
    finally:
        for module in tracking if enabled else ():
            module.track_running_stats = True
