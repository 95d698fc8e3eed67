"""Figures that follow from results already there: tests, intervals over chips and over training seeds, convergence.

Pure functions on arrays; each says what population it speaks about. docs/metrics.md has the equations.
"""

from nft_ext.metrics.paired import Paired, paired

__all__ = ["Paired", "paired"]
