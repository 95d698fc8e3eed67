"""SHA-256 over tensors: checkpoints, journals and training states tell by it whether weights and data are the same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

CHUNK = 1 << 26  # bytes hashed at a time: data on another device, or not contiguous, are copied


def tensor_hash(tensors: Iterable[tuple[str | None, Tensor]], text: str = "") -> str:
    """The hash over a text, then each tensor's name (None: without), type, shape and values; as hexadecimal digits."""
    digest = hashlib.sha256(text.encode())
    for name, tensor in tensors:
        header = "" if name is None else f"{name} "
        digest.update(f"{header}{tensor.dtype} {list(tensor.shape)} ".encode())
        for part in _parts(tensor.detach()):
            digest.update(part.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _parts(tensor: Tensor) -> Iterator[Tensor]:
    """Rows of a tensor, as many at a time as CHUNK holds; at least one."""
    if tensor.dim() == 0 or tensor.nbytes <= CHUNK:
        yield tensor
    else:
        yield from tensor.split(max(1, CHUNK * len(tensor) // tensor.nbytes))
