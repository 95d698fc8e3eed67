"""The total output of Negative Feedback Training (Eq. 1-3) and its schedules of feedback weights.

The feedback outputs are subtracted from the backbone's before the softmax, so a step that would make the
(noisier, or shallower) feedback outputs confident is damped: the feedback is negative.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from nft_ext._common.checks import boolean, fail, number

# None: powers of 10; a number: powers of it; gamma(n, N); or gamma_1 .. gamma_N themselves.
Gammas = None | float | Callable[[int, int], float] | Sequence[float]


def total_output(
    backbone: Tensor,
    feedbacks: Sequence[Tensor],
    beta: float,
    gammas: Sequence[float],
    a_b: float | None = None,
    a_f: float | None = None,
) -> Tensor:
    """`O = a_b * O_backbone - a_f * beta * sum_n gamma_n Out_n` (Eq. 1-3).

    Args:
        backbone: `[B, classes]`, the backbone's logits.
        feedbacks: N >= 1 tensors `[B, classes]`, `Out_1 .. Out_N`.
        beta: weight of all the feedback.
        gammas: N weights, `gamma_1 .. gamma_N`.
        a_b, a_f: shares of backbone and feedback; None: `1/(N+1)`, the paper's.

    Returns:
        `[B, classes]`, the logits the cross-entropy is taken on.
    """
    share = 1.0 / (len(feedbacks) + 1)
    feedback = torch.zeros_like(backbone)
    for gamma, output in zip(gammas, feedbacks, strict=True):
        feedback = feedback + gamma * output
    return (share if a_b is None else a_b) * backbone - (share if a_f is None else a_f) * beta * feedback


def gammas_noisiest_first_in_weight(feedbacks: int, base: float = 10.0) -> tuple[float, ...]:
    """OVF's schedule, `gamma_n = base^(n-N)`: the last feedback, at the largest sigma, weighs 1."""
    return tuple(base ** (n - feedbacks) for n in range(1, feedbacks + 1))


def gammas_shallowest_first_in_weight(feedbacks: int, base: float = 10.0) -> tuple[float, ...]:
    """IRS's schedule, `gamma_n = base^(1-n)`: the first feedback, the shallowest snapshot, weighs 1."""
    return tuple(base ** (1 - n) for n in range(1, feedbacks + 1))


def checked_gammas(gammas: Gammas, feedbacks: int | None = None) -> float | tuple[float, ...] | None:
    """`gammas` as a method keeps it, JSON-able: None, the base of the powers, or gamma_1 .. gamma_N.

    Args:
        gammas: as the methods take it; a callable is asked at once, so it needs N.
        feedbacks: N where it is known already.

    Raises:
        ValueError: empty, not N long, a weight negative or not finite, a base that is not > 0, a callable without N.
    """
    if gammas is None:
        return None
    if isinstance(gammas, numbers.Real):
        base = number("gammas", gammas)
        if base <= 0.0:
            fail("gammas", "must be > 0 where it is one number, the base of the powers", base)
        return base
    if callable(gammas):
        if feedbacks is None:
            fail("gammas", "must come with N (feedbacks or points) where it is a callable", "neither")
        gammas = [gammas(n, feedbacks) for n in range(1, feedbacks + 1)]
    if not isinstance(gammas, Iterable):
        fail("gammas", "must be a number, a callable gamma(n, N), or a list", gammas)
    checked = tuple(number(f"gammas[{n}]", gamma, low=0.0) for n, gamma in enumerate(gammas))
    if not checked:
        fail("gammas", "must hold one weight a feedback, at least one", gammas)
    if feedbacks is not None and len(checked) != feedbacks:
        fail("gammas", f"must hold one weight a feedback, {feedbacks}", len(checked))
    return checked


def feedback_weights(
    gammas: float | tuple[float, ...] | None,
    feedbacks: int,
    schedule: Callable[..., tuple[float, ...]],
    reversed_decay: bool = False,
) -> tuple[float, ...]:
    """`gamma_1 .. gamma_N` of a method: its own list or powers by its schedule, the other way round if asked for.

    Raises:
        ValueError: powers beyond the range of a float.
    """
    try:
        weights = gammas if isinstance(gammas, tuple) else schedule(feedbacks, 10.0 if gammas is None else gammas)
    except OverflowError:
        fail("gammas", f"must be a base whose powers up to {feedbacks - 1} are finite", gammas)
    return weights[::-1] if reversed_decay else weights


def check_feedback_options(method: Any) -> None:
    """Refuses what OVF and IRS both refuse: sigma or beta negative, shares out of range, reversed_decay not a bool.

    Raises:
        ValueError: names the option.
    """
    number("sigma", method.sigma, low=0.0)
    number("beta", method.beta, low=0.0)
    boolean("reversed_decay", method.reversed_decay)
    if method.a_b is not None and number("a_b", method.a_b) <= 0.0:
        fail("a_b", "must be > 0", method.a_b)
    if method.a_f is not None:
        number("a_f", method.a_f, low=0.0)
