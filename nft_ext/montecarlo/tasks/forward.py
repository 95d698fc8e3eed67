"""The forward of a model on a batch that the user gives. Without one, `nn.batch.inputs_of` decides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from nft_ext._common.checks import fail

ForwardFunction = Callable[[nn.Module, Any], Any]  # forward(model, batch) -> output


def checked_forward(forward: Any) -> ForwardFunction | None:
    """`forward`, a function or None.

    Raises:
        TypeError: anything else.
    """
    if forward is not None and (not callable(forward) or isinstance(forward, nn.Module)):
        rule = "must be a function forward(model, batch) -> output, or None"
        fail("forward", rule, type(forward).__name__, kind=TypeError)
    return forward
