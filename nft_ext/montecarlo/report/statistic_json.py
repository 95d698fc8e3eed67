"""Converts statistics to entries of a report's JSON file and back."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from nft_ext.montecarlo.statistics.precision import Precision
from nft_ext.montecarlo.statistics.run_statistic import RunStatistic
from nft_ext.montecarlo.statistics.slice_statistic import WHY_ABSENT, SliceStatistic


def statistic_entry(s: RunStatistic | SliceStatistic) -> dict[str, Any]:
    """The JSON entry of one metric. `statistic_of` reads it back."""
    entry = {
        "mean": s.mean,
        "ci95": s.ci95,
        "interval95": list(s.interval),
        "below": s.precision.below,
        "above": s.precision.above,
        "standard_error": s.precision.standard_error,
        "degrees_of_freedom": s.precision.df,
        "rough": s.precision.rough,
        "share": s.share,
        "std": s.std,
        "pooled": s.pooled,
        "higher_is_better": s.higher_is_better,
        "per_run": s.per_run.tolist(),
    }
    if isinstance(s, SliceStatistic):
        return entry | {
            "std_is_estimated": True,
            "conservative": s.conservative,
            "quantiles_absent": WHY_ABSENT,
        }
    return entry | {
        "worst": float(s.worst),
        "worst_bounds_quantile": s.worst.bounds_quantile,
    }


def statistic_of(entry: dict[str, Any]) -> RunStatistic | SliceStatistic:
    """The statistic of a JSON entry with NaN in place of null.

    Raises:
        KeyError: the entry lacks a field.
    """
    per_run = np.array(entry["per_run"], dtype=np.float64)
    higher = entry["higher_is_better"]  # null, so NaN here, if the metric did not say
    higher = None if isinstance(higher, float) else higher
    common = {"per_run": per_run, "pooled": entry["pooled"], "higher_is_better": higher}
    low, high = entry["interval95"]
    # Reports of version 0.2 have no arms, no degrees of freedom, and no standard error of chips that saw all images.
    precision = Precision(
        standard_error=entry.get("standard_error", math.nan),
        below=entry.get("below", entry["mean"] - low),
        above=entry.get("above", high - entry["mean"]),
        df=entry.get("degrees_of_freedom", math.nan),
        conservative=entry.get("conservative", False),
    )
    share = entry.get("share", False)
    if "std_is_estimated" in entry:
        return SliceStatistic(**common, std=entry["std"], precision=precision, share=share)
    return RunStatistic(**common, fixed=precision, share=share)
