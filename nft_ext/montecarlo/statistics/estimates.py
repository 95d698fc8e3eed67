"""Computes the report's metrics from the tallies of chips, under either protocol."""

from __future__ import annotations

import math

import numpy as np
from numpy import ndarray

from nft_ext.montecarlo.statistics.precision import Precision, precision_of
from nft_ext.montecarlo.statistics.run_statistic import RunStatistic
from nft_ext.montecarlo.statistics.slice_estimate import SliceEstimate, between_chips, credible_estimate
from nft_ext.montecarlo.statistics.slice_statistic import SliceStatistic
from nft_ext.montecarlo.statistics.slices import Slices
from nft_ext.montecarlo.statistics.tallies import Tallies

METRICS = ("accuracy", "ekl", "nll")


def ratios_of(tallies: Tallies) -> dict[str, tuple[ndarray, ndarray]]:
    """Metric -> (numerator, denominator) of every chip in `tallies`, float64 [runs] each."""
    images = tallies.images.numpy()
    return {
        "accuracy": (tallies.correct.numpy(), images),
        "ekl": (tallies.loss_correct.numpy(), tallies.correct.numpy()),
        "nll": (tallies.loss.numpy(), images),
    }


def accuracy_estimate(tallies: Tallies, count: int) -> SliceEstimate:
    """Mean accuracy and its variance. count: slices per tiling (1: every chip saw all images)."""
    return credible_estimate(*ratios_of(tallies)["accuracy"], count, share=True)


def run_statistics(tallies: Tallies, accuracy: Precision | None = None) -> dict[str, RunStatistic]:
    """All METRICS of chips that saw all images. accuracy: its precision if a stopping rule fixed it."""
    found = {}
    for name, (numerator, denominator) in ratios_of(tallies).items():
        with np.errstate(invalid="ignore", divide="ignore"):
            per_run = numerator / denominator  # 0 / 0 is NaN: EKL of a chip without correct images
            pooled = float(numerator.sum() / denominator.sum())
        share = name == "accuracy"
        fixed = None
        if share:  # the number of images enters the interval of a share
            fixed = accuracy or precision_of(credible_estimate(numerator, denominator, 1, share), share)
        found[name] = RunStatistic(per_run, pooled, higher_is_better=share, fixed=fixed, share=share)
    return found


def slice_statistics(
    tallies: Tallies, slices: Slices, accuracy: Precision | None = None
) -> dict[str, RunStatistic] | dict[str, SliceStatistic]:
    """All METRICS of chips that saw one slice each. accuracy: its precision if a stopping rule fixed it.

    One slice per tiling is the whole set, so its chips get the statistics of whole sets, with quantiles.
    """
    if slices.count == 1:
        return run_statistics(tallies, accuracy)
    found = {}
    for name, (numerator, denominator) in ratios_of(tallies).items():
        with np.errstate(invalid="ignore", divide="ignore"):
            per_run = numerator / denominator
            is_accuracy = name == "accuracy"
            of = credible_estimate(numerator, denominator, slices.count, share=is_accuracy)
        precision = accuracy if is_accuracy and accuracy is not None else precision_of(of, is_accuracy)
        std = math.nan
        if is_accuracy:
            between = float(between_chips(of, numerator, denominator, slices.count, slices.images))
            std = math.sqrt(between if not between < 0 else 0.0)  # an estimate below 0 counts as 0; NaN stays NaN
        found[name] = SliceStatistic(
            per_run,
            float(of.mean),
            higher_is_better=is_accuracy,
            std=std,
            precision=precision,
            share=is_accuracy,
        )
    return found
