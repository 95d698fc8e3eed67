"""One metric over chips that saw one slice of the images each: mean and interval. Quantiles are refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from nft_ext._common.checks import fail

LOGIT_FROM = 0.95  # accuracies above this are skewed, so their interval is computed on the logit scale
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
        higher_is_better: whether a higher value of the metric is better.
        std: standard deviation over chips of the metric on all images, estimated from slices. NaN without an estimate
            (EKL, NLL, one image per slice).
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
        """The mean over chips, equal to `pooled`.

        For EKL, a ratio, it is consistent. For the other metrics it is unbiased over complete tilings.
        """
        return self.pooled

    @property
    def values(self) -> np.ndarray:
        """The values without NaN, float64 [<= runs]."""
        return self.per_run[~np.isnan(self.per_run)]

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the mean, mean - ci95 to mean + ci95.

        For an accuracy above 95 % it is computed on the logit scale and transformed back.
        """
        if not self.share or not LOGIT_FROM < self.mean < 1:
            return self.mean - self.ci95, self.mean + self.ci95
        return logit_interval(self.mean, self.ci95)

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


def logit_interval(mean, half_width):
    """Interval (low, high) of a share on the logit scale, transformed back; floats or arrays.

    On the logit scale it is log(mean / (1 - mean)) +- half_width / (mean (1 - mean)).
    """
    logit, half = np.log(mean / (1 - mean)), half_width / (mean * (1 - mean))
    return 1 / (1 + np.exp(half - logit)), 1 / (1 + np.exp(-half - logit))
