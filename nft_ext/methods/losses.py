"""The total output of Negative Feedback Training (Eq. 1-3) and its two schedules of feedback weights.

The feedback outputs are subtracted from the backbone's before the softmax, so a step that would make the
(noisier, or shallower) feedback outputs confident is damped: the feedback is negative.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nft_ext.checks import fail, number


def total_output(backbone: Tensor, feedbacks: Sequence[Tensor], beta: float, gammas: Sequence[float]) -> Tensor:
    """`O = a_b * O_backbone - a_f * beta * sum_n gamma_n Out_n`, with `a_b = a_f = 1/(N+1)` (Eq. 1-3).

    Args:
        backbone: `[B, classes]`, the backbone's logits.
        feedbacks: N >= 1 tensors `[B, classes]`, `Out_1 .. Out_N`.
        beta: weight of all the feedback.
        gammas: N weights, `gamma_1 .. gamma_N`.

    Returns:
        `[B, classes]`, the logits the cross-entropy is taken on.
    """
    share = 1.0 / (len(feedbacks) + 1)
    feedback = torch.zeros_like(backbone)
    for gamma, output in zip(gammas, feedbacks, strict=True):
        feedback = feedback + gamma * output
    return share * backbone - share * beta * feedback


def gammas_noisiest_first_in_weight(feedbacks: int) -> tuple[float, ...]:
    """OVF's schedule, `gamma_n = 10^(n-N)`: the last feedback, at the largest sigma, weighs 1."""
    return tuple(10.0 ** (n - feedbacks) for n in range(1, feedbacks + 1))


def gammas_shallowest_first_in_weight(feedbacks: int) -> tuple[float, ...]:
    """IRS's schedule, `gamma_n = 10^(1-n)`: the first feedback, the shallowest snapshot, weighs 1."""
    return tuple(10.0 ** (1 - n) for n in range(1, feedbacks + 1))


def checked_gammas(gammas: Sequence[float] | None) -> tuple[float, ...] | None:
    """`gammas` as floats; None stands for the method's own schedule.

    Raises:
        ValueError: empty, or one is negative or not finite.
    """
    if gammas is None:
        return None
    checked = tuple(number(f"gammas[{n}]", gamma, low=0.0) for n, gamma in enumerate(gammas))
    if not checked:
        fail("gammas", "must hold one weight a feedback, at least one", gammas)
    return checked
