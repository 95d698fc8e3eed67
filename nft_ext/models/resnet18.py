"""ResNet-18 for 32x32 images: a 3x3 stem without max-pool, then four layers of two basic blocks (64, 128, 256, 512).

Sub-modules and state_dict keys have torchvision's names (conv1, bn1, layer1.0.conv1, layer2.0.downsample.0, fc), so
checkpoints of other CIFAR variants with these names load.
"""

from __future__ import annotations

import torch
from torch import fx, nn

from nft_ext.models.common import Network, check_images, check_sizes, scaled

fx.wrap("check_images")  # a traced model checks its input, too


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)  # batch-norm has the bias


class BasicBlock(nn.Module):
    """[B, in, H, W] -> [B, out, H/stride, W/stride]: relu(bn(conv(relu(bn(conv(x))))) + shortcut(x))."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.conv1 = conv3x3(in_channels, out_channels, stride)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.bn2 = nn.BatchNorm2d(out_channels)
        # The stride decides, not the channel counts: at a small width these can be equal, and state_dict keys
        # must not depend on the width.
        if stride != 1:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )
        else:
            self.downsample = nn.Identity()
        self.relu2 = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu2(y + self.downsample(x))


def two_blocks(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(BasicBlock(in_channels, out_channels, stride), BasicBlock(out_channels, out_channels, 1))


class ResNet18(Network):
    """[B, in_channels, 32, 32] -> logits [B, num_classes]; see `resnet18`."""

    # Taps of IRS (module, pooled side), shallowest first; relu1 ends the stem.
    # At width 1 their classifiers have 64*6*6, 64*6*6, 128*4*4 and 256*3*3 inputs.
    snapshot_points: tuple[tuple[str, int], ...] = (("relu1", 6), ("layer1", 6), ("layer2", 4), ("layer3", 3))
    # Further taps, in this order: the last layer, then the residual blocks within the layers.
    further_snapshot_points: tuple[tuple[str, int], ...] = (
        ("layer4", 2),
        ("layer1.0", 6),
        ("layer2.0", 4),
        ("layer3.0", 3),
        ("layer4.0", 2),
    )

    def __init__(self, num_classes: int, in_channels: int, width: float, init: str = "default"):
        super().__init__()
        self.num_classes, self.in_channels, self.width = check_sizes(num_classes, in_channels, width)
        c64, c128, c256, c512 = (scaled(channels, self.width) for channels in (64, 128, 256, 512))
        self.conv1 = conv3x3(self.in_channels, c64)
        self.bn1 = nn.BatchNorm2d(c64)
        self.relu1 = nn.ReLU(inplace=True)
        self.layer1 = two_blocks(c64, c64, stride=1)
        self.layer2 = two_blocks(c64, c128, stride=2)  # 32 -> 16
        self.layer3 = two_blocks(c128, c256, stride=2)  # 16 -> 8
        self.layer4 = two_blocks(c256, c512, stride=2)  # 8 -> 4
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(c512, self.num_classes)
        self._start(init)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        check_images("resnet18", x, self.in_channels)
        x = self.relu1(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.flatten(self.avgpool(x)))


def resnet18(num_classes: int = 10, in_channels: int = 3, width: float = 1.0, init: str = "default") -> ResNet18:
    """CIFAR ResNet-18, a plain nn.Module: [B, in_channels, 32, 32] -> logits [B, num_classes].

    Args:
        num_classes: C, the number of logits.
        in_channels: 3 for colour images (CIFAR), 1 for grey (MNIST).
        width: factor on every channel count (64, 128, 256, 512 at 1.0). Products are rounded to a multiple of 8, or
            to an integer >= 1 if they are below 8.
        init: the weights it starts with: "default" (torch's), or "published" (N(0, 2 / fan_out), biases 0).

    Raises:
        ValueError: an argument is out of range. The forward refuses inputs that are not [B, in_channels, 32, 32].
    """
    return ResNet18(num_classes, in_channels, width, init)
