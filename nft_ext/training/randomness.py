"""Randomness of a training: every random number follows from the seed and the position (epoch, step, rank).

No generator state passes from one step to the next. So a training can continue at any step, and the chips of a step do
not depend on the number of ranks. torch's CPU generator uses only 32 bits of a seed: among 100,000 steps, about one
pair shares a chip.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from nft_ext._common.checks import fail

_IN_USE = threading.RLock()  # one thread may nest


def seed_at(seed: int, purpose: str, *place: int) -> int:
    """A 63-bit seed for a purpose ("order", "data", "chip", ...) at a position (epoch, step, part, rank)."""
    text = " ".join([str(seed), purpose, *map(str, place)])
    return int.from_bytes(hashlib.blake2s(text.encode(), digest_size=8).digest(), "little") >> 1


def seed_torch(value: int, device: torch.device) -> None:
    """Seeds torch's generators of the CPU and of `device`. Generators of other devices stay as they are."""
    torch.default_generator.manual_seed(value)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(value)


@contextmanager
def own_randomness(seed: int, device: torch.device) -> Iterator[None]:
    """Seeds torch's generators of the CPU and of `device`, and restores them at the end.

    Raises:
        RuntimeError: another thread is inside. Both would draw from the same generators.
    """
    if not _IN_USE.acquire(blocking=False):
        rule = "must not run in two threads of one process, which share torch's generators; start a process for each"
        fail("fit", rule, "a second thread", kind=RuntimeError)
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            seed_torch(seed, device)
            yield
    finally:
        _IN_USE.release()
