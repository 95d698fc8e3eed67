"""The noisy convolution."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nft_ext._common.checks import fail
from nft_ext.device import NVMDevice
from nft_ext.nn import programmed
from nft_ext.nn.converters import ConvertingLayer
from nft_ext.ops.converters import Convolution, Watch
from nft_ext.ops.functional import Crossbar, conv2d_operands, conv2d_product
from nft_ext.ops.operands import check_tensor, padded


class NoisyConv2d(ConvertingLayer, nn.Conv2d):
    """nn.Conv2d whose weight sits on a crossbar: y = conv2d(x, W_p) + b. The bias is digital.

    The state_dict keys are those of nn.Conv2d. Shapes: x [B, C, H, W] (or [C, H, W]) -> [B, out, oh, ow]. Inside
    `nft.chips` with S chips, dim 0 is S * B, chip-major.

    Args:
        in_channels, out_channels, kernel_size: as in nn.Conv2d.
        nvm: the device model.
        args, options: the other arguments of nn.Conv2d, including padding modes.

    Raises:
        TypeError, ValueError: a bad argument, shape, type or torch device.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: Any, *args: Any, nvm: NVMDevice, **options: Any
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, *args, **options)
        self.attach(nvm)

    example_dims = 3

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]  (torch: `input`)
        """[B, out, oh, ow] from x [B, C, H, W], see the class.

        Raises:
            TypeError, ValueError: x has a wrong shape, type or torch device.
        """
        check_tensor("x", x)
        if x.dim() not in (3, 4):
            fail("x", f"must have the shape [B, {self.in_channels}, H, W] or [{self.in_channels}, H, W]", list(x.shape))
        return self.forward_on_array(x, self.ideal)

    def ideal(self, x: Tensor) -> Tensor:
        """The result for a checked x without converters."""
        weights = self.programmed(x)
        source = self.crossbar() if weights is None else weights
        chips = source.key.shape[0] if isinstance(source, Crossbar) else source.shape[0]
        single = x.dim() == 3
        if single:
            x = self._one_image(x, chips)
        x, padding = self.padded(x)
        if isinstance(source, Crossbar):
            convolution = (self.stride, padding, self.dilation, self.groups)
            y = conv2d_product(x, self.bias, source, *convolution, shared=chips == 1)
        else:
            y = programmed.conv2d(x, source, self.bias, self.stride, padding, self.dilation, self.groups)
        return y.squeeze(0) if single else y

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
        single = x.dim() == 3
        if single:
            x = self._one_image(x, chips)
        x, padding = self.padded(x)
        given = (self.stride, padding, self.dilation, self.groups)
        _, (stride, zeros, dilation, groups), _ = conv2d_operands(x, self.bias, self.weight, chips, *given, chips == 1)
        if isinstance(padding, str):
            x, _ = padded(x, padding, self.weight.shape[2:], stride, dilation)
        convolution = Convolution(stride, zeros, dilation, groups)
        y = self.tile_product(x, in_steps, convolution, limit, watch)
        return y.squeeze(0) if single else y

    def _one_image(self, x: Tensor, chips: int) -> Tensor:
        """x [C, H, W] as a batch."""
        if chips > 1:
            fail("x", f"must have a batch dimension for {chips} chips", list(x.shape))
        return x.unsqueeze(0)

    def padded(self, x: Tensor) -> tuple[Tensor, Any]:
        """x [N, C, H, W], padded unless the mode is "zeros", and the zero padding for the product."""
        if self.padding_mode == "zeros":
            return x, self.padding
        return torch.nn.functional.pad(x, self._reversed_padding_repeated_twice, mode=self.padding_mode), 0
