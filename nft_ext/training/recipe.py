"""The training recipe: optimizer, learning rate schedule, epochs, batches and precision."""

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
SCHEDULES = ("cosine", "cosine-epochs", "constant")
PAPER_RATES = {"vgg8": 1e-3, "resnet18": 1e-2}  # Adam's, by model
TINY_IMAGENET = "tinyimagenet"


def with_memory_format(model: nn.Module, memory_format: torch.memory_format) -> nn.Module:
    """`model` itself, its 4-D parameters and buffers moved into `memory_format`."""
    return model.to(memory_format=memory_format)  # pyright: ignore[reportCallIssue]  # missing in torch's stubs


@dataclass(frozen=True)
class Recipe:
    """Optimizer, schedule, epochs, batches and precision. The defaults are the paper's for VGG-8.

    Attributes:
        epochs: passes over the training images.
        batch_size: images per optimizer step, over all ranks and micro-batches.
        optimizer: "adam" or "sgd" (with `momentum`).
        lr: the learning rate at the start.
        weight_decay: L2 penalty of the optimizer.
        schedule: "cosine" (to 0, stepped every batch), "cosine-epochs" (stepped every epoch, as in the published
            code) or "constant".
        precision: "float32", or "bfloat16" for training under autocast. Weights, noise, optimizer and validation stay
            float32. bfloat16 is faster on processors that multiply it (`nft-ext info`); on other CPUs `fit` warns.
        accumulate: micro-batches per step. Each has its own chip and batch statistics. Without BatchNorm and noise the
            step equals that of the whole batch, up to rounding.
        channels_last: store images and the weights of plain layers with channels innermost. Weights of noisy layers
            stay row-major, the order of their noise.

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
            model: "vgg8", "resnet18", or a network of one of these classes.
            dataset: a name of `nft_ext.data.NAMES`.
            changes: changed attributes.

        Raises:
            ValueError: the paper does not train this model or data set.
            TypeError: a name in `changes` is not an attribute.
        """
        name = model if isinstance(model, str) else type(model).__name__.lower()
        if name not in PAPER_RATES:
            fail("model", f"must be a network of the paper, {' or '.join(PAPER_RATES)}", name)
        known = (*(n for n in data.NAMES if n != TINY_IMAGENET), TINY_IMAGENET)
        one_of("dataset", dataset, known)
        tiny = {"optimizer": "sgd", "lr": 1e-2, "momentum": 0.9, "weight_decay": 5e-4}
        return cls().replace(**(tiny if dataset == TINY_IMAGENET else {"lr": PAPER_RATES[name]}) | changes)

    def replace(self, **changes: Any) -> Recipe:
        """A copy with changed attributes.

        Raises:
            TypeError: a name is not an attribute.
            ValueError: a value is out of range.
        """
        names = [field.name for field in dataclasses.fields(self)]
        for name in changes:
            if name not in names:
                rule = f"has the attributes {', '.join(names)}{did_you_mean(name, names)}"
                fail("recipe", rule, name, kind=TypeError)
        return dataclasses.replace(self, **changes)

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate"):
            object.__setattr__(self, name, integer(name, getattr(self, name), 1))  # numpy's integers as Python's
        for name in ("lr", "momentum", "weight_decay"):
            object.__setattr__(self, name, number(name, getattr(self, name), low=0.0))
        if self.lr == 0.0:
            fail("lr", "must be > 0", self.lr)
        if self.momentum >= 1.0:
            fail("momentum", "must be < 1", self.momentum)
        one_of("optimizer", self.optimizer, OPTIMIZERS)
        one_of("schedule", self.schedule, SCHEDULES)
        one_of("precision", self.precision, PRECISIONS)
        if not isinstance(self.channels_last, bool):
            fail("channels_last", "must be True or False", self.channels_last, kind=TypeError)

    def build_optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Adam, or SGD with momentum, over `parameters`."""
        if self.optimizer == "adam":
            return torch.optim.Adam(parameters, lr=self.lr, weight_decay=self.weight_decay)
        return torch.optim.SGD(parameters, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)

    def learning_rate(self, step: int, steps: int) -> float:
        """The learning rate of `step`, 0 .. steps-1. A cosine falls from lr to 0, with every step or every epoch."""
        if self.schedule == "constant":
            return self.lr
        if self.schedule == "cosine-epochs":
            step, steps = step * self.epochs // steps, self.epochs
        return self.lr * 0.5 * (1.0 + math.cos(math.pi * step / steps))

    def autocast(self, device: torch.device) -> AbstractContextManager:
        """The context that sets the precision of a training forward on `device`."""
        return autocast(self.precision, device)

    @property
    def memory_format(self) -> torch.memory_format:
        """Memory format of images [B, C, H, W] and of the 4-D weights of plain layers."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def laid_out(self, x: Tensor) -> Tensor:
        """`x` [B, ...] for the model: images [B, C, H, W] in `memory_format`, other inputs unchanged."""
        if x.dim() != 4:
            return x
        return layout.channels_last(x) if self.channels_last else x.contiguous()
