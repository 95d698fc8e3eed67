"""How the weights are stepped: optimizer, learning rate schedule, epochs and batch size."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from nft_ext.checks import fail, integer, number

OPTIMIZERS = ("adam", "sgd")
SCHEDULES = ("cosine", "constant")


@dataclass(frozen=True)
class Recipe:
    """The numbers of a training run; `fit` documents them.

    Raises:
        ValueError: a number out of range, an unknown optimizer or schedule.
    """

    epochs: int
    batch_size: int
    optimizer: str
    lr: float
    momentum: float
    weight_decay: float
    schedule: str

    def __post_init__(self) -> None:
        integer("epochs", self.epochs, 1)
        integer("batch_size", self.batch_size, 1)
        if self.optimizer not in OPTIMIZERS:
            fail("optimizer", f"must be one of {', '.join(OPTIMIZERS)}", self.optimizer)
        if number("lr", self.lr) <= 0.0:
            fail("lr", "must be > 0", self.lr)
        if number("momentum", self.momentum, low=0.0) >= 1.0:
            fail("momentum", "must be < 1", self.momentum)
        number("weight_decay", self.weight_decay, low=0.0)
        if self.schedule not in SCHEDULES:
            fail("schedule", f"must be one of {', '.join(SCHEDULES)}", self.schedule)

    def build_optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Adam or SGD over `parameters`; momentum is SGD's only."""
        if self.optimizer == "adam":
            return torch.optim.Adam(parameters, lr=self.lr, weight_decay=self.weight_decay)
        return torch.optim.SGD(parameters, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)

    def learning_rate(self, step: int, steps: int) -> float:
        """The rate of step 0 .. steps-1; cosine falls from lr to 0 step by step, not epoch by epoch."""
        return self.lr * 0.5 * (1.0 + math.cos(math.pi * step / steps)) if self.schedule == "cosine" else self.lr
