"""One forward of an example, which leaves the model and all random generators as they were."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nft_ext._common.checks import fail
from nft_ext.nn.base import NoisyLayer
from nft_ext.nn.converters import without_converters
from nft_ext.nn.coverage.products import Products, products_of
from nft_ext.nn.observed import Observation, observed


def check_example(example: Any) -> None:
    """Refuses what is neither None nor an input of a model.

    Raises:
        TypeError: another type.
    """
    if example is not None and not isinstance(example, (Tensor, tuple, Mapping)):
        fail("example", "must be a tensor, a tuple of arguments or a mapping of keyword arguments", example, TypeError)


def run_example(model: nn.Module, example: Any) -> tuple[Observation, Products]:
    """Runs the model once, in eval mode without gradients: which noisy layers ran, and which parameters were read.

    Raises:
        ValueError: the model does not accept the example.
    """
    args = () if isinstance(example, Mapping) else example if isinstance(example, tuple) else (example,)
    kwargs = dict(example) if isinstance(example, Mapping) else {}
    layers = [m for m in model.modules() if isinstance(m, NoisyLayer)]
    ideal = without_converters(layers)  # their ranges may still be unknown
    with untouched(model), torch.no_grad(), ideal, observed(model) as observer, products_of(model) as products:
        try:
            model.eval()(*args, **kwargs)
        except Exception as error:  # the forward may raise anything
            reason = next(iter(str(error).splitlines()), "")
            message = f"example: must be an input that the model accepts; got {type(error).__name__}: {reason}"
            raise ValueError(message) from error
    return observer.found(), products


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Restores generators, training flags and buffers."""
    flags = [(m, m.training) for m in model.modules()]
    held = [(m, dict(m._buffers)) for m in model.modules()]
    own = [(m, buffers) for m, buffers in held if not isinstance(m, torch.jit.ScriptModule)]  # whose dict is its own
    values = [(b, b.clone()) for _, buffers in held for b in buffers.values() if b is not None]
    states = random.getstate(), np.random.get_state()  # noqa: NPY002  (the forward may use the global generator)
    gpus = sorted({p.device.index for p in model.parameters() if p.is_cuda})
    try:
        with torch.random.fork_rng(devices=gpus):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        for m, training in flags:
            m.training = training
        for m, buffers in own:
            m._buffers.clear()
            m._buffers.update(buffers)
        with torch.no_grad():
            for buffer, value in values:
                buffer.copy_(value)
