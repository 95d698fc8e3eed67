"""Small networks with the attribute names and output conventions of torchvision's and transformers' ResNets.

Neither library is needed: what matters to the methods is how modules are called and what a forward returns.
"""

from collections import OrderedDict
from dataclasses import dataclass, fields

import torch
from torch import nn


class BasicBlock(nn.Module):
    """As torchvision's: one in-place ReLU used twice, an in-place addition."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x):
        identity = x if self.downsample is None else self.downsample(x)
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += identity
        return self.relu(out)


class TorchvisionResNet(nn.Module):
    def __init__(self, classes=5):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = nn.Sequential(BasicBlock(8, 8, 1), BasicBlock(8, 8, 1))
        self.layer2 = nn.Sequential(BasicBlock(8, 16, 2), BasicBlock(16, 16, 1))
        self.layer3 = nn.Sequential(BasicBlock(16, 24, 2), BasicBlock(24, 24, 1))
        self.layer4 = nn.Sequential(BasicBlock(24, 32, 2), BasicBlock(32, 32, 1))
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(32, classes)

    def forward(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


class ModelOutput(OrderedDict):
    """As transformers': a dataclass, a mapping and, by integer, a tuple; entries that are None are left out."""

    def __post_init__(self):
        for field in fields(self):
            if getattr(self, field.name) is not None:
                self[field.name] = getattr(self, field.name)

    def __getitem__(self, key):
        return super().__getitem__(key) if isinstance(key, str) else tuple(self.values())[key]


@dataclass
class Features(ModelOutput):
    last_hidden_state: torch.Tensor = None
    pooler_output: torch.Tensor = None


@dataclass
class ImageClassifierOutput(ModelOutput):
    loss: torch.Tensor = None
    logits: torch.Tensor = None


class ConvLayer(nn.Module):
    def __init__(self, inputs, outputs, kernel=3, stride=1, activation=True):
        super().__init__()
        self.convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        self.normalization = nn.BatchNorm2d(outputs)
        self.activation = nn.ReLU() if activation else nn.Identity()

    def forward(self, x):
        return self.activation(self.normalization(self.convolution(x)))


class BasicLayer(nn.Module):
    def __init__(self, inputs, outputs, stride=1):
        super().__init__()
        self.shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        last = ConvLayer(outputs, outputs, activation=False)
        self.layer = nn.Sequential(ConvLayer(inputs, outputs, stride=stride), last)
        self.activation = nn.ReLU()

    def forward(self, x):
        y = self.layer(x)
        y += self.shortcut(x)
        return self.activation(y)


class Stage(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.layers = nn.Sequential(BasicLayer(inputs, outputs, stride), BasicLayer(outputs, outputs))

    def forward(self, x):
        return self.layers(x)


class Embeddings(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedder = ConvLayer(3, 8, 7, 2)
        self.pooler = nn.MaxPool2d(3, 2, 1)

    def forward(self, pixel_values):
        return self.pooler(self.embedder(pixel_values))


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.stages = nn.ModuleList([Stage(8, 8, 1), Stage(8, 16, 2), Stage(16, 24, 2), Stage(24, 32, 2)])

    def forward(self, x):
        for stage in self.stages:
            x = stage(x)
        return Features(last_hidden_state=x)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedder, self.encoder, self.pooler = Embeddings(), Encoder(), nn.AdaptiveAvgPool2d((1, 1))

    def forward(self, pixel_values):
        features = self.encoder(self.embedder(pixel_values))
        return Features(features[0], self.pooler(features[0]))


class TransformersResNet(nn.Module):
    def __init__(self, classes=5):
        super().__init__()
        self.resnet = Model()
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(32, classes))

    def forward(self, pixel_values, labels=None):
        return ImageClassifierOutput(logits=self.classifier(self.resnet(pixel_values).pooler_output))
