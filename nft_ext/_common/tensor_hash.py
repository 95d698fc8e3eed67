"""SHA-256 over tensors. Checkpoints, journals and training states use it to compare weights and data."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

CHUNK = 1 << 26  # bytes per hash call: bounds the copies of CUDA or strided tensors


def tensor_hash(tensors: Iterable[tuple[str | None, Tensor]], text: str = "") -> str:
    """Hexadecimal hash of `text`, then of each tensor's name (if not None), type, shape and values."""
    digest = hashlib.sha256(text.encode())
    for name, tensor in tensors:
        header = "" if name is None else f"{name} "
        digest.update(f"{header}{tensor.dtype} {list(tensor.shape)} ".encode())
        for part in _parts(tensor.detach()):
            digest.update(part.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _parts(tensor: Tensor) -> Iterator[Tensor]:
    """The tensor in groups of rows of at most CHUNK bytes, at least one row each."""
    if tensor.dim() == 0 or tensor.nbytes <= CHUNK:
        yield tensor
    else:
        yield from tensor.split(max(1, CHUNK * len(tensor) // tensor.nbytes))
