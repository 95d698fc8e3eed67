"""The size of a convolution's result."""

from __future__ import annotations

from collections.abc import Sequence

from nft_ext._common.checks import fail

MOST = 2**30 - 1  # of a stride, a padding and a dilation: kMostGeometry in csrc/operators/conv2d.h


def reach(kernel: int, dilation: int) -> int:
    """The length of a dilated kernel along one dimension."""
    return dilation * (kernel - 1) + 1


def output_size(
    size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> list[int]:
    """[oh, ow] for an image [h, w], padded on each side; below 1 if the padded image is smaller than the kernel."""
    return [(n + 2 * p - reach(k, d)) // s + 1 for n, k, s, p, d in zip(size, kernel, stride, padding, dilation)]


def check_output_size(
    size: Sequence[int], kernel: Sequence[int], padding: Sequence[int], dilation: Sequence[int], found: Sequence[int]
) -> None:
    """Refuses a padded image smaller than the dilated kernel. `found`: what `output_size` gave.

    Raises:
        ValueError: the image is too small.
    """
    for i in (0, 1):
        if found[i] < 1:
            rule = f"padded {('height', 'width')[i]} must be at least the kernel's {reach(kernel[i], dilation[i])}"
            fail("x", rule, size[i] + 2 * padding[i])
