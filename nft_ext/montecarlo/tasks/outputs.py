"""What a forward returns: logits in it, and whether it can be cut into the results of several chips."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from nft_ext._common.checks import fail
from nft_ext._common.logits import logits_of
from nft_ext.nn.chip_inputs import tensors_of


def split_chips(output: Any, chips: int, images: int) -> Tensor:
    """Reshapes a model's output [chips * images, C], chip-major, to logits [chips, images, C].

    Raises:
        TypeError, ValueError: the output has another type or shape.
    """
    output = logits_of(output)
    if output.ndim != 2 or len(output) != chips * images or output.shape[1] == 0:
        fail("model", f"must return logits [images, classes], here [{chips * images}, C]", list(output.shape))
    return output.reshape(chips, images, -1)


def why_whole(output: Any, rows: int) -> str | None:
    """The reason why an output cannot be cut along dim 0 into its `rows` examples; None if it can."""
    for tensor in tensors_of(output):
        if tensor.dim() == 0:
            return "the output holds a number for the whole batch, such as a loss"
        if len(tensor) != rows:
            return f"dim 0 of the output is not the batch: shape {list(tensor.shape)} for {rows} examples"
    return None
