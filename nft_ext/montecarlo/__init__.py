"""Monte Carlo inference over programmed chips: evaluation, reports and sweeps over sigma."""

from nft_ext.montecarlo.cost_estimate import CostEstimate, estimate_cost
from nft_ext.montecarlo.distributed.ranks import RanksError
from nft_ext.montecarlo.evaluate import monte_carlo
from nft_ext.montecarlo.execution.cost import Cost
from nft_ext.montecarlo.explain import explain
from nft_ext.montecarlo.explanation import Change, Explanation, ExplanationRow
from nft_ext.montecarlo.over_chips import over_chips
from nft_ext.montecarlo.report.chips_report import ChipsReport
from nft_ext.montecarlo.report.curves import sweep_table
from nft_ext.montecarlo.report.report import MonteCarloReport
from nft_ext.montecarlo.report.sweep_plot import plot_sweep
from nft_ext.montecarlo.statistics.precision import Precision
from nft_ext.montecarlo.statistics.run_statistic import Quantile, RunStatistic, Worst
from nft_ext.montecarlo.statistics.slice_statistic import SliceStatistic
from nft_ext.montecarlo.sweep import sweep
from nft_ext.montecarlo.sweep_result import Curve, Sweep
from nft_ext.montecarlo.tasks.built_in import metric
from nft_ext.montecarlo.temperature_fit import calibrate, fit_temperature

__all__ = [
    "Change",
    "ChipsReport",
    "Cost",
    "CostEstimate",
    "Curve",
    "Explanation",
    "ExplanationRow",
    "MonteCarloReport",
    "Precision",
    "Quantile",
    "RanksError",
    "RunStatistic",
    "SliceStatistic",
    "Sweep",
    "Worst",
    "calibrate",
    "estimate_cost",
    "explain",
    "fit_temperature",
    "metric",
    "monte_carlo",
    "over_chips",
    "plot_sweep",
    "sweep",
    "sweep_table",
]
