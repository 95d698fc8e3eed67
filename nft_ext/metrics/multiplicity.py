"""Adjusts p-values for the number of comparisons."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence

import numpy as np

from nft_ext._common.checks import fail, items


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values (Scand. J. Statist. 1979): the k-th smallest of m times m - k + 1, made monotone.

    Below 0.05, a comparison is significant in the family of all m. The chance of one false claim or more among them is
    then at most 5 %, whatever the comparisons have in common.

    Args:
        p: p-values in [0, 1]. NaN stays NaN and does not count.

    Returns:
        The adjusted values, in the order of `p`.

    Raises:
        TypeError: no list.
        ValueError: a value outside [0, 1].
    """
    p = items("p", p, "p-values")
    for one in p:
        real = isinstance(one, numbers.Real) and not isinstance(one, (bool, np.bool_))
        if not real or not (0 <= float(one) <= 1 or math.isnan(one)):
            fail("p", "must hold numbers in [0, 1] or NaN", repr(one))
    tested = sorted((i for i, one in enumerate(p) if math.isfinite(one)), key=lambda i: p[i])
    adjusted, highest = [math.nan] * len(p), 0.0
    for place, i in enumerate(tested):
        highest = max(highest, min(1.0, (len(tested) - place) * float(p[i])))
        adjusted[i] = highest
    return adjusted
