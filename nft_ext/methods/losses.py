"""The total output of Negative Feedback Training (Eq. 1-3 of arXiv 2305.14561) and its feedback weights.

The noisier or shallower feedback outputs are subtracted from the backbone's logits before the softmax. In OVF this
damps steps that would make the feedback outputs confident. In IRS the classifiers can learn either sign.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from nft_ext._common.checks import boolean, fail, number, one_of

# None: powers of 10. A number: powers of it. Or gamma(n, N), or the list gamma_1 .. gamma_N.
Gammas = None | float | Callable[[int, int], float] | Sequence[float]


UNIT = "unit"  # a_b that makes the weights of all outputs sum to 1


def total_output(
    backbone: Tensor,
    feedbacks: Sequence[Tensor],
    beta: float,
    gammas: Sequence[float],
    a_b: float | str | None = None,
    a_f: float | None = None,
) -> Tensor:
    """`O = a_b * O_backbone - a_f * beta * sum_n gamma_n Out_n` (Eq. 1-3).

    Args:
        backbone: `[B, ...]`, the backbone's logits or another output.
        feedbacks: N >= 1 tensors of its shape, `Out_1 .. Out_N`.
        beta: weight of the sum of all feedback. Negative: positive feedback.
        gammas: N weights, `gamma_1 .. gamma_N`.
        a_b, a_f: shares of backbone and feedback; None: `1/(N+1)`, the paper's. a_b "unit": all weights sum to 1.

    Returns:
        `[B, ...]`, the output for the criterion.

    Raises:
        ValueError: a feedback has another shape than the backbone's logits.
    """
    for n, output in enumerate(feedbacks):
        if output.shape != backbone.shape:
            rule = f"must have the shape of the backbone's logits, {list(backbone.shape)}"
            fail(f"feedbacks[{n}]", rule, list(output.shape))
    share = 1.0 / (len(feedbacks) + 1)
    feedback = torch.zeros_like(backbone)
    for gamma, output in zip(gammas, feedbacks, strict=True):
        feedback = feedback + gamma * output
    own = _share_of_backbone(beta, gammas, a_b, a_f)
    return own * backbone - (share if a_f is None else a_f) * beta * feedback


def total_weight(beta: float, gammas: Sequence[float], a_b: float | str | None, a_f: float | None) -> float:
    """The sum of all weights of the total output: the factor on an output that all forwards share."""
    share = 1.0 / (len(gammas) + 1) if a_f is None else a_f
    return _share_of_backbone(beta, gammas, a_b, a_f) - share * beta * sum(gammas)


def _share_of_backbone(beta: float, gammas: Sequence[float], a_b: float | str | None, a_f: float | None) -> float:
    share = 1.0 / (len(gammas) + 1)
    if a_b != UNIT:
        return share if a_b is None else float(a_b)
    found = 1.0 + (share if a_f is None else a_f) * beta * sum(gammas)
    if found <= 0.0:
        fail("a_b", "must be > 0, also as 'unit', which is 1 + a_f beta sum(gammas)", found)
    return found


def check_share(a_b: Any) -> None:
    """Refuses an a_b that is neither None, "unit" nor a number > 0.

    Raises:
        ValueError: such an a_b.
    """
    if isinstance(a_b, str):
        one_of("a_b", a_b, [UNIT], ", a number > 0, or None")
    elif a_b is not None and number("a_b", a_b) <= 0.0:
        fail("a_b", "must be > 0", a_b)


def gammas_noisiest_first_in_weight(feedbacks: int, base: float = 10.0) -> tuple[float, ...]:
    """OVF's schedule, `gamma_n = base^(n-N)`: the last feedback, at the largest sigma, weighs 1."""
    return tuple(base ** (n - feedbacks) for n in range(1, feedbacks + 1))


def gammas_shallowest_first_in_weight(feedbacks: int, base: float = 10.0) -> tuple[float, ...]:
    """IRS's schedule, `gamma_n = base^(1-n)`: the first feedback, the shallowest snapshot, weighs 1."""
    return tuple(base ** (1 - n) for n in range(1, feedbacks + 1))


def checked_gammas(gammas: Gammas, feedbacks: int | None = None) -> float | tuple[float, ...] | None:
    """`gammas` in JSON-able form: None, the base of the powers, or gamma_1 .. gamma_N.

    Args:
        gammas: the option of a method. A callable is called at once, so it needs N.
        feedbacks: N, None if not known yet.

    Raises:
        ValueError: gammas are empty or not N long, a weight is negative or not finite, a base is not > 0, or a
            callable comes without N.
    """
    if gammas is None:
        return None
    if isinstance(gammas, numbers.Real):
        base = number("gammas", gammas)
        if base <= 0.0:
            fail("gammas", "must be > 0 as a single number, the base of the powers", base)
        return base
    if callable(gammas):
        if feedbacks is None:
            fail("gammas", "must come with feedbacks or points if it is a callable", "neither")
        gammas = [gammas(n, feedbacks) for n in range(1, feedbacks + 1)]
    if not isinstance(gammas, Iterable):
        fail("gammas", "must be a number, a callable gamma(n, N), or a list", gammas)
    checked = tuple(number(f"gammas[{n}]", gamma, low=0.0) for n, gamma in enumerate(gammas))
    if not checked:
        fail("gammas", "must hold one weight per feedback, at least one", gammas)
    if feedbacks is not None and len(checked) != feedbacks:
        fail("gammas", f"must hold one weight per feedback, {feedbacks}", len(checked))
    return checked


def feedback_weights(
    gammas: float | tuple[float, ...] | None,
    feedbacks: int,
    schedule: Callable[..., tuple[float, ...]],
    reversed_decay: bool = False,
) -> tuple[float, ...]:
    """`gamma_1 .. gamma_N` of a method.

    Args:
        gammas: from `checked_gammas`. None or a number is the base of `schedule`.
        feedbacks: N.
        schedule: maps (N, base) to the weights.
        reversed_decay: reverse the weights.

    Raises:
        ValueError: a power exceeds the range of a float.
    """
    try:
        weights = gammas if isinstance(gammas, tuple) else schedule(feedbacks, 10.0 if gammas is None else gammas)
    except OverflowError:
        fail("gammas", f"must be a base whose powers up to {feedbacks - 1} are finite", gammas)
    return weights[::-1] if reversed_decay else weights


def check_feedback_options(method: Any) -> None:
    """Checks the options that OVF and IRS share: sigma, beta, a_b, a_f and reversed_decay.

    Raises:
        ValueError: one of them is out of range.
    """
    number("sigma", method.sigma, low=0.0)
    number("beta", method.beta)
    boolean("reversed_decay", method.reversed_decay)
    check_share(method.a_b)
    if method.a_f is not None:
        number("a_f", method.a_f, low=0.0)
