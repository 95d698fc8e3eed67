"""How the weights are stepped: optimizer, learning rate schedule, epochs, batches and precision."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nft_ext import data
from nft_ext._common import channels_last as layout
from nft_ext._common.bfloat16 import PRECISIONS, autocast
from nft_ext._common.checks import did_you_mean, fail, integer, number, one_of

OPTIMIZERS = ("adam", "sgd")
SCHEDULES = ("cosine", "constant")
PAPER_RATES = {"vgg8": 1e-3, "resnet18": 1e-2}  # Adam's, by model
TINY_IMAGENET = "tinyimagenet"


@dataclass(frozen=True)
class Recipe:
    """How the weights are stepped; the defaults are the paper's for VGG-8.

    Attributes:
        epochs: passes over the training images.
        batch_size: images an optimizer step, on all ranks and in all micro-batches together.
        optimizer: "adam" or "sgd" (with `momentum`).
        lr: the learning rate at the start.
        weight_decay: L2 penalty of the optimizer.
        schedule: "cosine" (to 0, stepped every batch) or "constant".
        precision: "float32", or "bfloat16" for training under autocast; weights, noise, optimizer and validation
            stay float32. Faster on processors that multiply bfloat16 (`nft-ext info`); `fit` warns on a CPU that is
            many times slower.
        accumulate: micro-batches a step. Each is a forward and a backward on a chip of its own, with its own
            batch statistics; without BatchNorm and noise the step is that of the whole batch, up to rounding.
        channels_last: images, in training and validation, and the weights of plain layers have the channels innermost
            in memory. Noisy layers' weights stay row-major, as their noise is counted; their results follow the images.

    Raises:
        ValueError: a number out of range, an unknown optimizer, schedule or precision.
        TypeError: channels_last is no bool.
    """

    epochs: int = 200
    batch_size: int = 128
    optimizer: str = "adam"
    lr: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: str = "cosine"
    precision: str = "float32"
    accumulate: int = 1
    channels_last: bool = False

    @classmethod
    def paper(cls, model: nn.Module | str, dataset: str, **changes: Any) -> Recipe:
        """The paper's training of `model` on `dataset`: 200 epochs, batch 128, cosine, Adam at 1e-3 (VGG-8) or 1e-2
        (ResNet-18); on Tiny ImageNet SGD at 1e-2, momentum 0.9, weight decay 5e-4.

        Args:
            model: "vgg8", "resnet18", or such a network.
            dataset: a name of `nft_ext.data.NAMES`, or "tinyimagenet".
            changes: attributes to set otherwise.

        Raises:
            ValueError: the paper trains no such model or data set.
            TypeError: changes name no attribute.
        """
        name = model if isinstance(model, str) else type(model).__name__.lower()
        if name not in PAPER_RATES:
            fail("model", f"must be one the paper trains, {' or '.join(PAPER_RATES)}", name)
        known = (*(n for n in data.NAMES if n != TINY_IMAGENET), TINY_IMAGENET)
        one_of("dataset", dataset, known)
        tiny = {"optimizer": "sgd", "lr": 1e-2, "momentum": 0.9, "weight_decay": 5e-4}
        return cls().replace(**(tiny if dataset == TINY_IMAGENET else {"lr": PAPER_RATES[name]}) | changes)

    def replace(self, **changes: Any) -> Recipe:
        """The same with some attributes set otherwise.

        Raises:
            TypeError: no such attribute. ValueError: a bad value.
        """
        names = [field.name for field in dataclasses.fields(self)]
        for name in changes:
            if name not in names:
                fail(
                    "recipe", f"must be changed in {', '.join(names)}{did_you_mean(name, names)}", name, kind=TypeError
                )
        return dataclasses.replace(self, **changes)

    def __post_init__(self) -> None:
        integer("epochs", self.epochs, 1)
        integer("batch_size", self.batch_size, 1)
        one_of("optimizer", self.optimizer, OPTIMIZERS)
        if number("lr", self.lr) <= 0.0:
            fail("lr", "must be > 0", self.lr)
        if number("momentum", self.momentum, low=0.0) >= 1.0:
            fail("momentum", "must be < 1", self.momentum)
        number("weight_decay", self.weight_decay, low=0.0)
        one_of("schedule", self.schedule, SCHEDULES)
        one_of("precision", self.precision, PRECISIONS)
        integer("accumulate", self.accumulate, 1)
        if not isinstance(self.channels_last, bool):
            fail("channels_last", "must be True or False", self.channels_last, kind=TypeError)

    def build_optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Adam or SGD over `parameters`; momentum is SGD's only."""
        if self.optimizer == "adam":
            return torch.optim.Adam(parameters, lr=self.lr, weight_decay=self.weight_decay)
        return torch.optim.SGD(parameters, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)

    def learning_rate(self, step: int, steps: int) -> float:
        """The rate of step 0 .. steps-1; cosine falls from lr to 0 step by step, not epoch by epoch."""
        return self.lr * 0.5 * (1.0 + math.cos(math.pi * step / steps)) if self.schedule == "cosine" else self.lr

    def autocast(self, device: torch.device) -> AbstractContextManager:
        """The precision of a training forward on `device`."""
        return autocast(self.precision, device)

    @property
    def memory_format(self) -> torch.memory_format:
        """How images [B, C, H, W] and plain layers' 4-D weights lie in memory."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def laid_out(self, x: Tensor) -> Tensor:
        """A batch of inputs [B, ...] as the model is to see it: images [B, C, H, W] in `memory_format`."""
        if x.dim() != 4:
            return x
        return layout.channels_last(x) if self.channels_last else x.contiguous()
