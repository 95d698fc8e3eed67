"""Shared by the networks: the width factor and the check of the input's shape."""

from __future__ import annotations

import torch
from torch import nn

from nft_ext._common.checks import fail, integer, number, one_of
from nft_ext._common.initialisation import INITS, initialised

IMAGE_SIZE = 32  # pixels per side; it sets the sizes of the fully connected layers


def scaled(channels: int, width: float) -> int:
    """`channels * width`, rounded to a multiple of 8, or to an integer >= 1 if it is below 8.

    Multiples of 8 keep every layer on whole SIMD vectors.
    """
    exact = channels * width
    return round(exact / 8) * 8 if exact >= 8 else max(1, round(exact))


def check_sizes(num_classes: int, in_channels: int, width: float) -> tuple[int, int, float]:
    """The three arguments of a network, checked.

    Raises:
        ValueError: num_classes or in_channels is not an integer >= 1, or width is not a finite number > 0.
    """
    num_classes = integer("num_classes", num_classes, 1)
    in_channels = integer("in_channels", in_channels, 1)
    width = number("width", width)
    if width <= 0:
        fail("width", "must be a finite number > 0", width)
    return num_classes, in_channels, width


class Network(nn.Module):
    """A network of this folder. It remembers how its weights began.

    Attributes:
        init: "default" or "published", see `models.build`. IRS starts its classifiers in the same way.
    """

    # Private, so that the identity of a network, which journals store, does not depend on its start.
    _init: str = "default"

    @property
    def init(self) -> str:
        return self._init

    def _start(self, init: str) -> None:
        """Draws the weights anew as `init` says.

        Raises:
            ValueError: init is unknown.
        """
        if one_of("init", init, INITS) != "default":
            self._init = init
            initialised(self, init)


def check_images(model: str, x: torch.Tensor, in_channels: int) -> None:
    """Refuses inputs that are not images [B, in_channels, 32, 32].

    Raises:
        ValueError: x has another shape.
    """
    if x.dim() != 4 or x.shape[1] != in_channels or x.shape[2] != IMAGE_SIZE or x.shape[3] != IMAGE_SIZE:
        fail(f"{model} input", f"must have shape [B, {in_channels}, {IMAGE_SIZE}, {IMAGE_SIZE}]", list(x.shape))
