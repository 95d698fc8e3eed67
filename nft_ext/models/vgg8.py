"""VGG-8 for 32x32 images: conv 64-128-P-256-256-P-512-512-P, each 3x3 with batch-norm and ReLU; fc 8192-1024-C."""

from __future__ import annotations

import torch
from torch import fx, nn

from nft_ext.models.common import Network, check_images, check_sizes, scaled

fx.wrap("check_images")  # a traced model checks its input, too


class ConvBlock(nn.Module):
    """Convolution, batch-norm, ReLU, max-pool: [B, in, H, W] -> [B, out, H/2, W/2], or [B, out, H, W] without pool."""

    def __init__(self, in_channels: int, out_channels: int, pool: bool):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)  # batch-norm has the bias
        self.bn = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(2) if pool else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pool(self.relu(self.bn(self.conv(x))))


class VGG8(Network):
    """[B, in_channels, 32, 32] -> logits [B, num_classes]; see `vgg8`."""

    # Taps of IRS (module, pooled side), shallowest first.
    # At width 1 their classifiers have 64*6*6 = 2304, 128*4*4 = 2048 and 256*3*3 = 2304 inputs.
    snapshot_points: tuple[tuple[str, int], ...] = (("block1", 6), ("block2", 4), ("block4", 3))
    # Further taps, in this order, with at most 2304 inputs each at width 1.
    further_snapshot_points: tuple[tuple[str, int], ...] = (("block6", 2), ("block3", 3), ("block5", 2))

    def __init__(self, num_classes: int, in_channels: int, width: float, init: str = "default"):
        super().__init__()
        self.num_classes, self.in_channels, self.width = check_sizes(num_classes, in_channels, width)
        c64, c128, c256, c512 = (scaled(channels, self.width) for channels in (64, 128, 256, 512))
        hidden = scaled(1024, self.width)
        self.block1 = ConvBlock(self.in_channels, c64, pool=False)
        self.block2 = ConvBlock(c64, c128, pool=True)  # 32 -> 16
        self.block3 = ConvBlock(c128, c256, pool=False)
        self.block4 = ConvBlock(c256, c256, pool=True)  # 16 -> 8
        self.block5 = ConvBlock(c256, c512, pool=False)
        self.block6 = ConvBlock(c512, c512, pool=True)  # 8 -> 4
        self.flatten = nn.Flatten()
        self.fc1 = nn.Linear(c512 * 4 * 4, hidden)
        self.relu = nn.ReLU(inplace=True)
        self.fc2 = nn.Linear(hidden, self.num_classes)
        self._start(init)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        check_images("vgg8", x, self.in_channels)
        x = self.block2(self.block1(x))
        x = self.block4(self.block3(x))
        x = self.block6(self.block5(x))
        return self.fc2(self.relu(self.fc1(self.flatten(x))))


def vgg8(num_classes: int = 10, in_channels: int = 1, width: float = 1.0, init: str = "default") -> VGG8:
    """VGG-8, a plain nn.Module: [B, in_channels, 32, 32] -> logits [B, num_classes].

    Args:
        num_classes: C, the number of logits.
        in_channels: 1 for grey images (MNIST), 3 for colour (CIFAR).
        width: factor on every channel count and on the hidden layer (64, 128, 256, 512; 1024 at 1.0). Products are
            rounded to a multiple of 8, or to an integer >= 1 if they are below 8.
        init: the weights it starts with: "default" (torch's), or "published" (N(0, 2 / fan_out), biases 0).

    Raises:
        ValueError: an argument is out of range. The forward refuses inputs that are not [B, in_channels, 32, 32].
    """
    return VGG8(num_classes, in_channels, width, init)
