"""Monte Carlo inference over programmed chips: evaluation, reports, sweeps over sigma."""

from nft_ext.montecarlo.calibration import calibrate
from nft_ext.montecarlo.cost_estimate import CostEstimate, estimate_cost
from nft_ext.montecarlo.report.curves import sweep_table
from nft_ext.montecarlo.evaluate import monte_carlo
from nft_ext.montecarlo.report.plots import plot_sweep
from nft_ext.montecarlo.report.report import MonteCarloReport
from nft_ext.montecarlo.statistics.statistic import Quantile, RunStatistic, Worst
from nft_ext.montecarlo.sweep import sweep
from nft_ext.montecarlo.sweep_result import Sweep

__all__ = [
    "CostEstimate",
    "MonteCarloReport",
    "Quantile",
    "RunStatistic",
    "Sweep",
    "Worst",
    "calibrate",
    "estimate_cost",
    "monte_carlo",
    "plot_sweep",
    "sweep",
    "sweep_table",
]
