"""The paper's networks: plain nn.Modules for 32x32 images, with a width factor.

Each has `snapshot_points`, pairs (module name, pooled side), shallowest first. IRS puts a classifier on the output of
each such module, after batch-norm, ReLU and max-pool. `further_snapshot_points` lists more of them.
"""

from __future__ import annotations

from torch import nn

from nft_ext._common.checks import one_of
from nft_ext.models.resnet18 import resnet18
from nft_ext.models.vgg8 import vgg8

_BUILDERS = {"vgg8": vgg8, "resnet18": resnet18}
NAMES: tuple[str, ...] = tuple(_BUILDERS)


def build(name: str, num_classes: int, in_channels: int, width: float = 1.0, init: str = "default") -> nn.Module:
    """A newly initialised network: [B, in_channels, 32, 32] -> logits [B, num_classes].

    Args:
        name: one of `models.NAMES`.
        num_classes, in_channels, width, init: see `models.vgg8` and `models.resnet18`.

    Raises:
        ValueError: the name is unknown, or an argument is out of range.
    """
    return _BUILDERS[one_of("model", name, NAMES)](num_classes, in_channels, width, init)


__all__ = ["NAMES", "build", "resnet18", "vgg8"]
