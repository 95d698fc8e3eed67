"""The size of a convolution's result."""

from __future__ import annotations

from collections.abc import Sequence


def reach(kernel: int, dilation: int) -> int:
    """How many neighbouring elements of one dimension a kernel of `kernel` elements spans."""
    return dilation * (kernel - 1) + 1


def output_size(
    size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> list[int]:
    """[oh, ow] of an image [h, w]; below 1 where the padded image is smaller than the kernel reaches. Padding: on each
    side.
    """
    return [(n + 2 * p - reach(k, d)) // s + 1 for n, k, s, p, d in zip(size, kernel, stride, padding, dilation)]
