"""The size of a convolution's result."""

from __future__ import annotations

from collections.abc import Sequence


def reach(kernel: int, dilation: int) -> int:
    """The length of a dilated kernel along one dimension."""
    return dilation * (kernel - 1) + 1


def output_size(
    size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> list[int]:
    """[oh, ow] for an image [h, w], padded on each side; below 1 if the padded image is smaller than the kernel."""
    return [(n + 2 * p - reach(k, d)) // s + 1 for n, k, s, p, d in zip(size, kernel, stride, padding, dilation)]
