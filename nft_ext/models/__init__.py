"""The networks of the experiments (design, section 7): plain nn.Modules for 32x32 images, with a width factor.

Each has `snapshot_points`, a tuple of (module name, pooled side), shallowest first: the modules whose output
feeds an IRS classifier, and `further_snapshot_points` for those who want more. A tapped output is what follows
batch-norm and ReLU (and the pool, where one comes next).
"""

from __future__ import annotations

from torch import nn

from nft_ext._common.checks import one_of
from nft_ext.models.resnet18 import resnet18
from nft_ext.models.vgg8 import vgg8

_BUILDERS = {"vgg8": vgg8, "resnet18": resnet18}
NAMES: tuple[str, ...] = tuple(_BUILDERS)


def build(name: str, num_classes: int, in_channels: int, width: float = 1.0) -> nn.Module:
    """The architecture `name` of `NAMES`, freshly initialised: [B, in_channels, 32, 32] -> [B, num_classes].

    Args:
        name: one of `models.NAMES`.
        num_classes, in_channels, width: as `models.vgg8` and `models.resnet18` take them.

    Raises:
        ValueError: an unknown name, or an argument out of range.
    """
    return _BUILDERS[one_of("model", name, NAMES)](num_classes, in_channels, width)


__all__ = ["NAMES", "build", "resnet18", "vgg8"]
