"""How often a method's training converges: the share of training seeds that pass a criterion."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nft_ext._common.checks import fail, number
from nft_ext.metrics.proportions import clopper_pearson, fisher_exact
from nft_ext.metrics.samples import row_means, sample

PAPER_MARGIN = 0.05  # 5 points
CLEAN_SHARE = 0.9


@dataclass(frozen=True)
class Convergence:
    """What `convergence` found; the population is trainings of one method, one per seed.

    Attributes:
        converged: one bool per training.
        thresholds: the accuracy that each had to reach.
        criterion: in words.
        probability: share of trainings that converged.
        low, high: its 95 % Clopper-Pearson interval.
    """

    converged: tuple[bool, ...]
    thresholds: tuple[float, ...]
    criterion: str
    probability: float
    low: float
    high: float

    @property
    def runs(self) -> int:
        """Trainings."""
        return len(self.converged)

    @property
    def non_converging(self) -> int:
        """Trainings that did not converge."""
        return self.runs - sum(self.converged)

    def differs_from(self, other: Convergence) -> float:
        """Two-sided p-value of Fisher's exact test between two methods' counts, judged by one criterion.

        Raises:
            ValueError: the two were judged by different criteria.
        """
        if other.criterion != self.criterion:
            fail("other", f"must be judged by the same criterion ({self.criterion})", other.criterion)
        return fisher_exact(self.non_converging, self.runs, other.non_converging, other.runs)

    def __str__(self) -> str:
        return (
            f"{self.non_converging} of {self.runs} trainings do not converge ({self.criterion}); "
            f"probability of convergence {self.probability:.3g}, 95 % {self.low:.3g} to {self.high:.3g}"
        )


def convergence(
    accuracy: np.ndarray,
    clean: float | np.ndarray | None = None,
    *,
    margin: float = PAPER_MARGIN,
    share: float = CLEAN_SHARE,
) -> Convergence:
    """Which of a method's trainings converged, by the paper's criterion or, with `clean`, by an absolute one.

    Without `clean`, the paper's: a training does not converge when its accuracy is more than `margin` below the mean
    over that method's trainings. It compares a method with itself: one that fails every time passes it, and one that
    fails now and then fails more of it the better its good trainings are.
    With `clean`: it does not converge when its accuracy is below `share` of the clean accuracy.

    Args:
        accuracy: [S], one a training, a fraction; or [S, R], which is averaged over chips.
        clean: the accuracy without noise to measure against, a fraction: one number, or [S], each training's own.
        margin: >= 0, in fractions (0.05 is 5 points). share: in [0, 1].

    Raises:
        ValueError: other shapes or ranges, NaN, accuracies that are no fractions (percent, say).
    """
    margin, share = number("margin", margin, 0.0, 1.0), number("share", share, 0.0, 1.0)
    accuracy = row_means(_fractions("accuracy", accuracy, (1, 2), "[seeds] or [seeds, runs]"))
    if clean is None:
        threshold = np.full(len(accuracy), accuracy.mean() - margin)
        criterion = f"more than {100 * margin:g} points below the method's mean"
    else:
        clean = _fractions("clean", clean, (0, 1), "[] or [seeds]")
        if clean.ndim and len(clean) != len(accuracy):
            fail(
                "clean",
                f"must be one number, or one for each of the {len(accuracy)} trainings",
                f"{len(clean)} numbers",
            )
        threshold = np.broadcast_to(share * clean, accuracy.shape)
        criterion = f"below {100 * share:g} % of the clean accuracy"
    converged = ~(accuracy < threshold)
    count = int(converged.sum())
    low, high = clopper_pearson(count, len(accuracy))
    return Convergence(
        tuple(converged.tolist()), tuple(threshold.tolist()), criterion, count / len(accuracy), low, high
    )


def _fractions(argument: str, values, dims: tuple[int, ...], symbols: str) -> np.ndarray:
    array = sample(argument, values, dims, symbols)
    outside = array[(array < 0) | (array > 1)]
    if outside.size:
        fail(argument, "must hold accuracies as fractions in 0..1", float(outside[0]))
    return array
