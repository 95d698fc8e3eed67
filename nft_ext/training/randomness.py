"""Where the randomness of a run comes from: every number follows from the run's seed and the place in the run.

No generator lives from one step to the next, so a run can be continued at any step, and the chips of a step are the
same for any number of ranks. (torch's CPU generator takes 32 bits of a seed: of 100,000 steps about one pair shares a
chip.)
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def seed_at(seed: int, purpose: str, *place: int) -> int:
    """A seed of 63 bits for a purpose ("order", "data", "chip", ...) at a place (epoch, step, part, rank)."""
    text = " ".join([str(seed), purpose, *map(str, place)])
    return int.from_bytes(hashlib.blake2s(text.encode(), digest_size=8).digest(), "little") >> 1


def seed_torch(value: int, device: torch.device) -> None:
    """Starts torch's generators of the CPU and of `device` from `value`; those of other devices are left alone."""
    torch.default_generator.manual_seed(value)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(value)


@contextmanager
def own_randomness(seed: int, device: torch.device) -> Iterator[None]:
    """Inside, torch's generators of the CPU and of `device` start from `seed`; after, they are as before."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        seed_torch(seed, device)
        yield
