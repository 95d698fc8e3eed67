"""Figures that follow from results already there: tests, intervals over chips and over training seeds, convergence,
temperature.

Functions of arrays and logits; each says what population it speaks about. docs/reference/metrics.md has the equations.
"""

from nft_ext.metrics.convergence import Convergence, convergence
from nft_ext.metrics.methods import MethodDifference, compare_methods
from nft_ext.metrics.over_seeds import OverSeeds, over_seeds
from nft_ext.metrics.paired import Paired, paired
from nft_ext.metrics.proportions import clopper_pearson, fisher_exact
from nft_ext.metrics.temperature import Temperature, Tempered, fit_temperature, tempered

__all__ = [
    "Convergence",
    "MethodDifference",
    "OverSeeds",
    "Paired",
    "Temperature",
    "Tempered",
    "clopper_pearson",
    "compare_methods",
    "convergence",
    "fisher_exact",
    "fit_temperature",
    "over_seeds",
    "paired",
    "tempered",
]
