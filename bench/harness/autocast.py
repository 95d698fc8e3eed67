"""The precisions of the benchmarks: float32, or bfloat16 autocast."""

from __future__ import annotations

import contextlib

import torch

ELEMENT_BYTES = {"fp32": 4, "bf16": 2}


def context(precision: str, kind: str = "cpu") -> contextlib.AbstractContextManager:
    """`precision` on the torch device of this kind. No cache, so that each repetition casts its weights."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(kind, dtype=torch.bfloat16, cache_enabled=False)
