"""The noisy linear layer."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from nft_ext._common.checks import fail
from nft_ext.device import NVMDevice
from nft_ext.nn import programmed
from nft_ext.nn.converters import ConvertingLayer
from nft_ext.ops.converters import Watch
from nft_ext.ops.functional import linear_product
from nft_ext.ops.operands import check_operands


class NoisyLinear(ConvertingLayer, nn.Linear):
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

    example_dims = 1

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]  (torch: `input`)
        """[B, ..., out] from x [B, ..., in], see the class."""
        return self.forward_on_array(x, self.ideal)

    def ideal(self, x: Tensor) -> Tensor:
        """The result for a checked x without converters."""
        if (weights := self.programmed(x)) is not None:
            return programmed.linear(x, weights, self.bias)
        bar = self.crossbar()
        return linear_product(x, self.bias, bar, shared=bar.key.shape[0] == 1)

    def array_product(self, x: Tensor, limit: Tensor | None, watch: Watch | None = None) -> Tensor:
        """The result array by array for an x behind the DAC.

        Args:
            x: as of the forward.
            limit: the range of the ADC; None: sums are not converted.
            watch: called with every array's sums, before their conversion.

        Raises:
            TypeError, ValueError: as the forward.
        """
        in_steps = self.in_steps()
        chips = in_steps[0].shape[0]
        check_operands(x, self.weight, self.bias, chips, False)
        if x.dim() == 0 or x.shape[-1] != self.in_features:
            fail("x", f"must have the shape [..., in] with in = {self.in_features}", list(x.shape))
        if x.dim() == 1 and chips > 1:
            fail("x", f"must have a batch dimension for {chips} chips", list(x.shape))
        y = self.tile_product(x.reshape(-1, x.shape[-1]), in_steps, None, limit, watch)
        return y.reshape(*x.shape[:-1], y.shape[-1])
