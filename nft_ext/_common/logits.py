"""What counts as a model's logits: a tensor, or one of the containers that model libraries return."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from nft_ext._common.checks import fail


def logits_of(output: Any) -> Tensor:
    """The logits in what a model's forward returned.

    Args:
        output: a tensor; an object with `.logits` (transformers' ModelOutput); a mapping with the key "logits". A bare
            tuple is refused: which entry holds the logits is not known.

    Returns:
        The logits, `[B, classes]` where the model gives that.

    Raises:
        TypeError: none of these.
    """
    if isinstance(output, Tensor):
        return output
    found = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if not isinstance(found, Tensor):
        rule = "must return one tensor of logits, or an object that holds it as .logits"
        fail("model", rule, type(output).__name__, TypeError)
    return found
