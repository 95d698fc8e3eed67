"""The noisy linear layer."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from nft_ext.device import NVMDevice
from nft_ext.nn import programmed
from nft_ext.nn.base import NoisyLayer
from nft_ext.ops.functional import linear_product


class NoisyLinear(NoisyLayer, nn.Linear):
    """nn.Linear whose weight sits on a crossbar: y = x W_p^T + b. The bias is digital.

    The state_dict keys are those of nn.Linear. Shapes: x [B, ..., in] -> [B, ..., out]. Inside `nft.chips` with S
    chips, dim 0 is S * B, chip-major.

    Args:
        in_features, out_features, bias: as in nn.Linear.
        nvm: the device model.
        options: the other arguments of nn.Linear.

    Raises:
        TypeError, ValueError: a bad argument, shape, type or torch device.
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, *, nvm: NVMDevice, **options: Any
    ) -> None:
        super().__init__(in_features, out_features, bias, **options)
        self.attach(nvm)

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]  (torch: `input`)
        """[B, ..., out] from x [B, ..., in], see the class."""
        if (weights := self.programmed(x)) is not None:
            return programmed.linear(x, weights, self.bias)
        bar = self.crossbar()
        return linear_product(x, self.bias, bar, shared=bar.key.shape[0] == 1)
