"""Random numbers of other people's code, made repeatable: torch's, NumPy's and Python's generators, seeded together."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def seeded(device: torch.device, *place: int | str) -> Iterator[None]:
    """Seeds the generators from `place`, for example a seed and the number of a chip, and restores them at the end.

    Args:
        device: torch device whose generator is seeded beside the CPU's.
        place: what the random numbers depend on.
    """
    value = int.from_bytes(hashlib.blake2s(repr(place).encode(), digest_size=8).digest(), "little") >> 1
    before, arrays = random.getstate(), np.random.get_state()  # noqa: NPY002  (what other people's code draws from)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(value)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(value)
        random.seed(value)
        np.random.seed(value % 2**32)  # noqa: NPY002
        try:
            yield
        finally:
            random.setstate(before)
            np.random.set_state(arrays)  # noqa: NPY002
