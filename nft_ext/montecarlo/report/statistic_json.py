"""Converts statistics to entries of a report's JSON file and back."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from nft_ext.montecarlo.statistics.run_statistic import RunStatistic
from nft_ext.montecarlo.statistics.slice_statistic import WHY_ABSENT, SliceStatistic


def statistic_entry(s: RunStatistic | SliceStatistic) -> dict[str, Any]:
    """The JSON entry of one metric. `statistic_of` reads it back."""
    entry = {
        "mean": s.mean,
        "ci95": s.ci95,
        "interval95": list(s.interval),
        "std": s.std,
        "pooled": s.pooled,
        "higher_is_better": s.higher_is_better,
        "per_run": s.per_run.tolist(),
    }
    if isinstance(s, SliceStatistic):
        return entry | {
            "std_is_estimated": True,
            "standard_error": s.standard_error,
            "conservative": s.conservative,
            "share": s.share,
            "quantiles_absent": WHY_ABSENT,
        }
    return entry | {
        "worst": float(s.worst),
        "worst_bounds_quantile": s.worst.bounds_quantile,
        "fixed_half_width": math.nan if s.fixed_half_width is None else s.fixed_half_width,
    }


def statistic_of(entry: dict[str, Any]) -> RunStatistic | SliceStatistic:
    """The statistic of a JSON entry with NaN in place of null.

    Raises:
        KeyError: the entry lacks a field.
    """
    per_run = np.array(entry["per_run"], dtype=np.float64)
    common = {"per_run": per_run, "pooled": entry["pooled"], "higher_is_better": entry["higher_is_better"]}
    if "standard_error" in entry:
        names = ("std", "standard_error", "ci95", "conservative", "share")
        return SliceStatistic(**common, **{name: entry[name] for name in names})
    fixed = entry.get("fixed_half_width", math.nan)
    return RunStatistic(**common, fixed_half_width=None if math.isnan(fixed) else fixed)
