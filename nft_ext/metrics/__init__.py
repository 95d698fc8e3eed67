"""Figures computed from finished results: tests, intervals over chips and training seeds, convergence, temperature.

The functions take arrays and logits. Each docstring names the population that its outcome speaks about.
docs/reference/metrics.md has the equations.
"""

from nft_ext.metrics.convergence import Convergence, convergence
from nft_ext.metrics.equivalence import Equivalence, equivalence
from nft_ext.metrics.method_difference import MethodDifference, compare_methods
from nft_ext.metrics.multiplicity import holm
from nft_ext.metrics.over_seeds import OverSeeds, over_seeds
from nft_ext.metrics.paired import Paired, paired
from nft_ext.metrics.proportions import clopper_pearson, fisher_exact
from nft_ext.metrics.temperature import Temperature, Tempered, fit_temperature, tempered

__all__ = [
    "Convergence",
    "Equivalence",
    "MethodDifference",
    "OverSeeds",
    "Paired",
    "Temperature",
    "Tempered",
    "clopper_pearson",
    "compare_methods",
    "convergence",
    "equivalence",
    "fisher_exact",
    "fit_temperature",
    "holm",
    "over_seeds",
    "paired",
    "tempered",
]
