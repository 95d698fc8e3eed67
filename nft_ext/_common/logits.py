"""Finds the logits in a model's output: a tensor, or a container that a model library returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from nft_ext._common.checks import fail


def logits_of(output: Any) -> Tensor:
    """The logits in the output of a model's forward.

    Args:
        output: a tensor, an object with `.logits` (transformers' ModelOutput), or a mapping with the key "logits". A
            tuple is refused: it does not say which entry holds the logits.

    Returns:
        The logits as the model returns them, usually `[B, classes]`.

    Raises:
        TypeError: `output` is none of these.
    """
    if isinstance(output, Tensor):
        return output
    found = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if not isinstance(found, Tensor):
        rule = "must return one tensor of logits, or an object that holds it as .logits"
        fail("model", rule, type(output).__name__, TypeError)
    return found
