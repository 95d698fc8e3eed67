"""One metric over chips that saw a slice of the images each: mean and interval; what needs whole sets is refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from nft_ext._common.checks import fail

LOGIT_FROM = 0.95  # an accuracy above is so skewed near 1 that its interval is taken on the logit scale
WHY_ABSENT = (
    "each chip saw a slice of the images, whose accuracy varies with the images as well as with the chip; "
    "quantiles and the worst case need protocol='full'"
)


@dataclass(frozen=True, eq=False)
class SliceStatistic:
    """One metric of a stratified evaluation.

    Attributes:
        per_run: float64 [runs], of chip r on its own slice; NaN where it has no value. Not a chip's figure on all
            images.
        pooled: over all chips and images seen, the ratio of the summed numerator and denominator; also the mean.
        higher_is_better: whether a higher value of the metric is better.
        std: standard deviation over chips of the metric on all images, estimated from slices. NaN where there is no
            estimate (EKL, NLL, one image per slice).
        standard_error: standard error of the mean.
        ci95: half-width of the 95 % interval of the mean, t(df) * standard_error.
        conservative: True if the interval is too wide on average, because too few chips shared a slice.
        share: whether the metric is a share of images, in 0 .. 1.
    """

    per_run: np.ndarray
    pooled: float
    higher_is_better: bool
    std: float
    standard_error: float
    ci95: float
    conservative: bool
    share: bool  # a share of images, in 0 .. 1

    @property
    def mean(self) -> float:
        """The mean over chips, `pooled`: consistent for a ratio (EKL), unbiased over complete tilings for the others."""
        return self.pooled

    @property
    def values(self) -> np.ndarray:
        """The runs that have a value, float64 [<= runs]."""
        return self.per_run[~np.isnan(self.per_run)]

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the mean, mean - ci95 to mean + ci95.

        For an accuracy above 95 % it is that interval on the logit scale, taken back.
        """
        if not self.share or not LOGIT_FROM < self.mean < 1:
            return self.mean - self.ci95, self.mean + self.ci95
        return logit_interval(self.mean, self.ci95)

    def quantile(self, q: float) -> NoReturn:
        """Refused, since a slice's accuracy varies with its images too.

        Raises:
            ValueError: for every `q`, with the reason.
        """
        fail("quantile", WHY_ABSENT, f"q = {q!r} under protocol 'stratified'")

    @property
    def worst(self) -> NoReturn:
        """Refused, since a slice's accuracy varies with its images too.

        Raises:
            ValueError: always, with the reason.
        """
        fail("worst", WHY_ABSENT, "protocol 'stratified'")


def logit_interval(mean, half_width):
    """(low, high) of a share: half_width / (mean (1 - mean)) around log(mean / (1 - mean)), taken back. Floats or
    arrays.
    """
    logit, half = np.log(mean / (1 - mean)), half_width / (mean * (1 - mean))
    return 1 / (1 + np.exp(half - logit)), 1 / (1 + np.exp(-half - logit))
