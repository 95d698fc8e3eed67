"""Are two training methods equally good, up to a margin? A large p of a difference does not show it; this test does."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nft_ext._common.checks import fail, number
from nft_ext.metrics.distributions import student_t_tail, t_half_width
from nft_ext.metrics.method_difference import MethodDifference, compare_methods


@dataclass(frozen=True)
class Equivalence:
    """The outcome of `equivalence`: method a minus method b, against a margin.

    Attributes:
        difference: the difference with its 95 % interval and the test for a difference.
        margin: the largest difference that counts as none.
        ci90: half-width of the 90 % interval. p < 0.05 exactly if this interval lies within +-margin.
        p: the larger of two one-sided p-values, for a difference of at least the margin in either direction.
    """

    difference: MethodDifference
    margin: float
    ci90: float
    p: float

    def __str__(self) -> str:
        one = self.difference
        return (
            f"difference {one.mean:+.5g} +- {self.ci90:.2g} (90 %, {one.seeds[0]} and {one.seeds[1]} training seeds), "
            f"equal within {self.margin:g}: p = {self.p:.3g}"
        )


def equivalence(a: np.ndarray, b: np.ndarray, *, margin: float, shared_seeds: bool) -> Equivalence:
    """Tests whether methods a and b differ by less than `margin` (two one-sided t tests, TOST).

    The null hypothesis is a difference of at least the margin, so few or scattered trainings give a large p. With the
    standard error se and df degrees of freedom of `compare_methods`: p = max(P(T > (margin + mean) / se),
    P(T > (margin - mean) / se)) (Schuirmann, J. Pharmacokinet. Biopharm. 1987).

    Args:
        a, b, shared_seeds: as for `compare_methods`.
        margin: in the units of a and b, > 0. Choose it before the results are known.

    Returns:
        The p-value, the 90 % interval, and the test for a difference.

    Raises:
        ValueError: margin is not > 0, or an argument that `compare_methods` refuses.
    """
    if number("margin", margin) <= 0:
        fail("margin", "must be > 0", margin)
    found = compare_methods(a, b, shared_seeds=shared_seeds)
    error = found.ci95 / t_half_width(1.0, found.df)
    if error == 0:
        return Equivalence(found, margin, 0.0, 0.0 if abs(found.mean) < margin else 1.0)
    p = max(student_t_tail((margin + side * found.mean) / error, found.df) for side in (1, -1))
    return Equivalence(found, margin, t_half_width(error, found.df, 0.9), p)
