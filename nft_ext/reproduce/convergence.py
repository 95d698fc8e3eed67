"""How often the trainings of each method converge, beside the paper's counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nft_ext.metrics import Convergence, clopper_pearson, convergence
from nft_ext.reproduce import published
from nft_ext.reproduce.summary import Row

AGAINST = "noise"


@dataclass(frozen=True)
class Converged:
    """One method's trainings at one panel and sigma.

    Attributes:
        accuracy: mean over chips per training, percent.
        relative: counts by the paper's criterion: a training fails 5 points below the method's own mean.
        absolute: counts by a common criterion: a training fails below 90 % of `clean`. It also catches methods that
            fail every time.
        clean: highest accuracy without noise among all trainings of the panel, percent.
        p_relative, p_absolute: Fisher's exact test against noise injection. None for noise injection itself, or if it
            is missing.
        paper: the paper's (non-converging trainings, trainings), or None.
        paper_interval: 95 % Clopper-Pearson interval of the paper's converging share, or None.
    """

    panel: str
    variant: str
    sigma: float
    accuracy: tuple[float, ...]
    relative: Convergence
    absolute: Convergence
    clean: float
    p_relative: float | None
    p_absolute: float | None
    paper: tuple[int, int] | None
    paper_interval: tuple[float, float] | None


def converged(table: Sequence[Row]) -> list[Converged]:
    """One entry per row of `table`, in its order."""
    clean = {
        panel: max(max(row.clean_per_seed) for row in table if row.panel == panel) for panel in {r.panel for r in table}
    }
    judged = {}
    for row in table:
        # Rounding can give values just above 1, hence the limits.
        fractions = np.clip(np.array(row.per_seed) / 100, 0, 1)
        judged[row.panel, row.sigma, row.variant] = (
            convergence(fractions),
            convergence(fractions, clean=min(1.0, clean[row.panel] / 100)),
        )
    found = []
    for row in table:
        relative, absolute = judged[row.panel, row.sigma, row.variant]
        other = judged.get((row.panel, row.sigma, AGAINST)) if row.variant != AGAINST else None
        paper = published.convergence(row.variant, row.panel, row.sigma)
        found.append(
            Converged(
                row.panel,
                row.variant,
                row.sigma,
                row.per_seed,
                relative,
                absolute,
                clean[row.panel],
                relative.differs_from(other[0]) if other else None,
                absolute.differs_from(other[1]) if other else None,
                paper,
                clopper_pearson(paper[1] - paper[0], paper[1]) if paper else None,
            )
        )
    return found
