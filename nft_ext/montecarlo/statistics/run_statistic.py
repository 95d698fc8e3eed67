"""One metric over the chips of an evaluation: mean, standard deviation, quantiles, worst case, with intervals."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np

from nft_ext._common.checks import fail, number
from nft_ext.montecarlo.statistics.intervals import order_statistic_ranks, unseen_share
from nft_ext.montecarlo.statistics.precision import Precision, precision_of
from nft_ext.montecarlo.statistics.slice_estimate import estimate


class Quantile(float):
    """An estimated quantile over chips: a float with its 95 % order-statistic interval.

    Attributes:
        low, high: the interval; -inf or inf if too few chips give such a bound.
    """

    low: float
    high: float

    def __new__(cls, value: float, low: float = math.nan, high: float = math.nan):
        self = super().__new__(cls, value)
        self.low, self.high = low, high
        return self


class Worst(float):
    """The worst chip of an evaluation: a float with a bound on all chips of the device.

    Attributes:
        runs: number of chips evaluated.
        bounds_quantile: at most this share of all chips is worse, with 95 % confidence. For 200 chips it is 0.0149: the
            minimum of 200 chips bounds the 1.5 % quantile and nothing below it.
    """

    runs: int
    bounds_quantile: float

    def __new__(cls, value: float, runs: int = 0, bounds_quantile: float = math.nan):
        self = super().__new__(cls, value)
        self.runs, self.bounds_quantile = runs, bounds_quantile
        return self


@dataclass(frozen=True, eq=False)
class RunStatistic:
    """One metric of a Monte Carlo evaluation.

    Mean, std, interval and quantiles leave out chips without a value.

    Attributes:
        per_run: float64 [runs], the metric of chip r; NaN without a value (EKL of a chip without correct images).
        pooled: the metric over all chips and images together. For EKL it is the ratio of the summed numerator and the
            summed denominator; for the other metrics it is the mean.
        higher_is_better: whether the lowest or the highest value is the worst; None: unknown.
        fixed: the interval if a stopping rule or a number of images decides it; None: computed from `per_run` alone.
        share: whether the metric is a share of equal items (images, tokens), in 0 .. 1.
    """

    per_run: np.ndarray
    pooled: float
    higher_is_better: bool | None
    fixed: Precision | None = None
    share: bool = False

    @property
    def values(self) -> np.ndarray:
        """The values without NaN, float64 [<= runs]."""
        return self.per_run[~np.isnan(self.per_run)]

    @property
    def mean(self) -> float:
        """Mean over chips; NaN if no chip has a value."""
        return float(np.mean(self.values)) if len(self.values) else math.nan

    @property
    def std(self) -> float:
        """Standard deviation over chips (divisor n - 1); NaN below two values."""
        values = self.values
        # Measured from the first value, equal values deviate by exactly 0, without the mean's rounding.
        return float(np.std(values - values[0], ddof=1)) if len(values) > 1 else math.nan

    @functools.cached_property
    def precision(self) -> Precision:
        """The 95 % interval of the mean over chips, and its degrees of freedom; NaN below two values."""
        if self.fixed is not None:
            return self.fixed
        values = self.values
        if len(values) < 2:
            return Precision(math.nan, math.nan, math.nan, math.nan)
        # Measured from the first value, equal values deviate by exactly 0, without the mean's rounding.
        return precision_of(estimate(values - values[0], np.ones(len(values)), 1), share=False)

    @property
    def ci95(self) -> float:
        """The longer arm of the 95 % interval of the mean over chips.

        It is t(n-1) * std / sqrt(n), and more on the side of skewed chips (docs/reference/monte_carlo.md).
        """
        return self.precision.half_width

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the mean. A share's interval stays within 0 .. 1."""
        return self.mean - self.precision.below, self.mean + self.precision.above

    @property
    def conservative(self) -> bool:
        """Always False, because chips that saw all images give the exact variance."""
        return False

    def quantile(self, q: float) -> Quantile:
        """The q-quantile over chips, linear between order statistics, with its interval.

        Args:
            q: in (0, 1).

        Returns:
            A float with attributes `low` and `high`.

        Raises:
            ValueError: q outside (0, 1).
        """
        if not 0 < number("q", q) < 1:
            fail("q", "must be > 0 and < 1", q)
        ordered = np.sort(self.values)
        n = len(ordered)
        if n == 0:
            return Quantile(math.nan)
        low, high = order_statistic_ranks(n, q)
        return Quantile(
            np.quantile(ordered, q),
            low=float(ordered[low - 1]) if low >= 1 else -math.inf,
            high=float(ordered[high - 1]) if high <= n else math.inf,
        )

    @property
    def worst(self) -> Worst:
        """The lowest value if higher is better, else the highest. NaN if neither is known to be better."""
        n = len(self.values)
        if n == 0 or self.higher_is_better is None:
            return Worst(math.nan)
        value = self.values.min() if self.higher_is_better else self.values.max()
        return Worst(value, runs=n, bounds_quantile=unseen_share(n))
