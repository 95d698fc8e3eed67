"""A metric as a function of the sums of a chip, with the derivative that its interval under slices needs.

docs/reference/monte_carlo.md, section 4, has the equations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy import ndarray

from nft_ext.montecarlo.statistics.slice_estimate import SliceEstimate, credible_estimate, no_estimate
from nft_ext.montecarlo.statistics.tallies import Tallies


@dataclass(frozen=True)
class Figure:
    """A function of sums over examples that stays the same if all sums are multiplied by one number.

    Attributes:
        name: name of the metric.
        sums: tallies -> float64 [R, K], the sums of every chip.
        value: sums [..., K] -> the figure [...].
        gradient: sums [K] -> [K], the derivative of `value` there.
        products: tallies -> float64 [R, K, K], the sums over examples of the products of an example's parts. None: the
            spread over chips cannot be estimated from slices.
        higher_is_better: None: unknown.
        share: whether it is a share of items of equal weight, such as images or tokens, that are right or wrong. It
            lies in 0 .. 1, and its interval knows the number of items.
        right_or_wrong: whether every example is one such item.
        is_ratio: whether K is 2 and `value` divides the first sum by the second one.
    """

    name: str
    sums: Callable[[Tallies], ndarray]
    value: Callable[[ndarray], ndarray]
    gradient: Callable[[ndarray], ndarray]
    products: Callable[[Tallies], ndarray] | None = None
    higher_is_better: bool | None = None
    share: bool = False
    right_or_wrong: bool = False
    is_ratio: bool = False

    def per_run(self, tallies: Tallies) -> ndarray:
        """The figure of every chip, [R]; NaN for 0 / 0."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.value(self.sums(tallies))

    def pooled(self, tallies: Tallies) -> float:
        """The figure of all chips' sums together."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return float(self.value(_columns(self.sums(tallies)).sum(axis=1)))

    def estimate(self, tallies: Tallies, count: int, whole: bool) -> SliceEstimate:
        """The mean of the figure and its variance.

        Of chips that saw slices, a ratio enters by its numerators and denominators, and another figure by its
        first-order change with the sums. Of whole sets, the figures of the chips are averaged.

        Args:
            tallies: of R chips.
            count: m, slices per tiling.
            whole: whether every chip saw all examples.
        """
        sums = self.sums(tallies)
        with np.errstate(invalid="ignore", divide="ignore"):
            if self.is_ratio and (not whole or (sums[:, 1] == sums[0, 1]).all()):
                numerator, denominator = _columns(sums)
                return credible_estimate(numerator, denominator, count, self.share)
            if whole:
                values = self.value(sums)
                values = values[~np.isnan(values)]
                if len(values) < 2:
                    return no_estimate(len(sums))
                return credible_estimate(values, np.ones(len(values)), count, share=False)
            mean = sums.mean(axis=0)
            changes = sums @ self.gradient(mean)  # their mean is 0
            return credible_estimate(self.value(mean) + changes, np.ones(len(sums)), count, share=False)

    def spread(self, tallies: Tallies, sizes: ndarray) -> float:
        """W, the variance of the linearised figure among the examples of a slice; NaN without `products`.

        Args:
            tallies: of R chips.
            sizes: [R] examples per chip.
        """
        if self.products is None:
            return np.nan
        sums = self.sums(tallies)
        with np.errstate(invalid="ignore", divide="ignore"):
            gradient = self.gradient(sums.sum(axis=0) / sizes.sum())
            first = sums @ gradient / sizes
            second = np.einsum("rij,i,j->r", self.products(tallies), gradient, gradient) / sizes
            some = sizes > 1
            values = sizes[some] / (sizes[some] - 1) * (second - first**2)[some]
        return float(values.mean()) if len(values) else np.nan

    def linearised(self, parts: ndarray) -> ndarray:
        """The first-order change of the figure with each example, [...], of parts [..., K]; their mean is 0."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return parts @ self.gradient(parts.reshape(-1, parts.shape[-1]).mean(axis=0))


def ratio(
    name: str,
    sums: Callable[[Tallies], ndarray],
    products: Callable[[Tallies], ndarray] | None = None,
    *,
    higher_is_better: bool | None,
    share: bool = False,
    right_or_wrong: bool = False,
) -> Figure:
    """The figure sum of numerators / sum of denominators, of sums [R, 2]."""
    return Figure(
        name, sums, _quotient, _quotient_gradient, products, higher_is_better, share, right_or_wrong, is_ratio=True
    )


def _columns(sums: ndarray) -> ndarray:
    """[K, R] of [R, K]. numpy adds the entries of contiguous rows in pairs, which rounds less."""
    return np.ascontiguousarray(sums.T)


def _quotient(sums: ndarray) -> ndarray:
    return sums[..., 0] / sums[..., 1]


def _quotient_gradient(sums: ndarray) -> ndarray:
    return np.array([1.0, -sums[0] / sums[1]]) / sums[1]
