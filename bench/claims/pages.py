"""The pages on which every figure needs an entry."""

from __future__ import annotations

from bench.claims.other import OTHERS
from bench.claims.performance import PERFORMANCE, README
from bench.claims.results import RESULTS_PAGE
from bench.claims.statistics import STATISTICS

PAGES = [README, PERFORMANCE, RESULTS_PAGE, STATISTICS, *OTHERS]
