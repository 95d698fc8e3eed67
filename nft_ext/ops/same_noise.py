"""Gradients belong to the chip of their forward: what a backward was handed is compared with it."""

from __future__ import annotations

import torch
from torch import Tensor

from nft_ext._common.checks import fail

# (rule, what was found), for `fail`
OTHER_NOISE = (
    "must recompute with the noise of the forward. Call backward() inside nft.chips and nft.noise, or use "
    "torch.utils.checkpoint with preserve_rng_state=True",
    "another chip or sigma",
)


def noise_of_forward(table: Tensor, key: Tensor) -> tuple[Tensor, Tensor] | None:
    """(table, key) for `check_same_noise`; None in transforms and graphs, which never run a forward again in Python."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or type(key) is not Tensor:
        return None
    return table, key


def check_same_noise(then: tuple[Tensor, Tensor] | None, table: Tensor, key: Tensor) -> None:
    """Refuses gradients for another chip than the forward's: a recomputation may have made the saved tensors.

    Args:
        then: the forward's table and key, or None: no check.
        table, key: those that the backward was handed.

    Raises:
        RuntimeError: they differ.
    """
    if then is None:
        return
    for before, now in zip(then, (table, key)):
        if before is now or before.data_ptr() == now.data_ptr():
            continue
        if before.shape != now.shape or not torch.equal(before, now):
            fail("the backward", *OTHER_NOISE, RuntimeError)
