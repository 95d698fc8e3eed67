"""How often a method's training converges: the share of training seeds that meet a criterion."""

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
    """The outcome of `convergence`. The population is the trainings of one method, one per seed.

    Attributes:
        converged: one bool per training.
        thresholds: the accuracy that each training had to reach.
        criterion: the criterion in words.
        probability: share of trainings that converged.
        low, high: 95 % Clopper-Pearson interval of that share.
    """

    converged: tuple[bool, ...]
    thresholds: tuple[float, ...]
    criterion: str
    probability: float
    low: float
    high: float

    @property
    def runs(self) -> int:
        """Number of trainings."""
        return len(self.converged)

    @property
    def non_converging(self) -> int:
        """Number of trainings that did not converge."""
        return self.runs - sum(self.converged)

    def differs_from(self, other: Convergence) -> float:
        """Fisher's exact test between the counts of two methods.

        Args:
            other: the outcome of another method, by the same criterion.

        Returns:
            The two-sided p-value.

        Raises:
            ValueError: the two outcomes use different criteria.
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
    """Tells which trainings of a method converged, by the paper's criterion or, with `clean`, by an absolute one.

    The paper's criterion, without `clean`: a training fails if its accuracy is more than `margin` below the mean over
    the method's trainings. This compares a method with itself: a method whose trainings all fail passes.
    The absolute criterion, with `clean`: a training fails if its accuracy is below `share` times `clean`.

    Args:
        accuracy: [S], one fraction per training; or [S, R], which is averaged over chips.
        clean: accuracy without noise, a fraction: one number, or [S] with one per training.
        margin: distance below the mean, a fraction in [0, 1]; 0.05 is 5 points.
        share: share of the clean accuracy, in [0, 1].

    Returns:
        One bool and one threshold per training, and the share that converged with its interval.

    Raises:
        ValueError: a wrong shape or range, NaN, or accuracies outside 0..1 (percentages).
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
                f"must be one number, or one per training, here {len(accuracy)}",
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
