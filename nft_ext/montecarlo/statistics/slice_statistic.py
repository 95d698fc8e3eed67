"""One metric over chips that saw one slice of the images each: mean and interval. Quantiles are refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from nft_ext._common.checks import fail
from nft_ext.montecarlo.statistics.precision import Precision

WHY_ABSENT = (
    "each chip saw a slice of the images, so its accuracy varies with the images too; "
    "quantiles and the worst case need protocol='full'"
)


@dataclass(frozen=True, eq=False)
class SliceStatistic:
    """One metric of a stratified evaluation.

    Attributes:
        per_run: float64 [runs], the metric of chip r on its own slice, not on all images; NaN without a value.
        pooled: ratio of the numerator and the denominator, both summed over all chips; also the mean.
        higher_is_better: whether a higher value of the metric is better; None: unknown.
        std: standard deviation over chips of the metric on all images, estimated from slices. NaN without an estimate
            (ECE, mean IoU, one image per slice).
        precision: the 95 % interval of the mean, its standard error and its degrees of freedom.
        share: whether the metric is a share of equal items (images, tokens), in 0 .. 1.
    """

    per_run: np.ndarray
    pooled: float
    higher_is_better: bool | None
    std: float
    precision: Precision
    share: bool

    @property
    def mean(self) -> float:
        """The mean over chips, equal to `pooled`.

        For EKL, a ratio, it is consistent. For the other metrics it is unbiased over complete tilings.
        """
        return self.pooled

    @property
    def values(self) -> np.ndarray:
        """The values without NaN, float64 [<= runs]."""
        return self.per_run[~np.isnan(self.per_run)]

    @property
    def standard_error(self) -> float:
        """Standard error of the mean."""
        return self.precision.standard_error

    @property
    def ci95(self) -> float:
        """The longer arm of the 95 % interval of the mean.

        It is t(df) * standard_error, and more on the side of skewed chips (docs/reference/monte_carlo.md).
        """
        return self.precision.half_width

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the mean. A share's interval stays within 0 .. 1."""
        return self.mean - self.precision.below, self.mean + self.precision.above

    @property
    def conservative(self) -> bool:
        """True if the interval is too wide on average, as too few chips shared a slice, or too few of them differ."""
        return self.precision.conservative

    def quantile(self, q: float) -> NoReturn:
        """Always an error, because the accuracy on a slice varies with its images too.

        Raises:
            ValueError: for every `q`, with the reason.
        """
        fail("quantile", WHY_ABSENT, f"q = {q!r} under protocol 'stratified'")

    @property
    def worst(self) -> NoReturn:
        """Always an error, because the accuracy on a slice varies with its images too.

        Raises:
            ValueError: always, with the reason.
        """
        fail("worst", WHY_ABSENT, "protocol 'stratified'")
