"""Temperature scaling: fits the temperature that calibrates a network's confidence, and a model that applies it."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from nft_ext._common.checks import fail, module, number
from nft_ext._common.logits import logits_of
from nft_ext._common.targets import INTEGERS, probability_note

LIMITS = (1e-4, 1e4)  # range of a fitted temperature
TOLERANCE = 1e-9  # of log T
PART = 1 << 22  # logits per part, so that float64 copies stay small


@dataclass(frozen=True)
class Temperature:
    """A fitted temperature.

    Attributes:
        value: T, at which logits / T has the smallest negative log-likelihood.
        nll, nll_before: mean of -log p_label at T and at 1, in nats.
        at_limit: True if T is 1e-4 or 1e4 because the likelihood has no maximum in between. This happens if all images
            are correct, or if the network learnt nothing.
    """

    value: float
    nll: float
    nll_before: float
    at_limit: bool

    def __str__(self) -> str:
        end = ", at the limit of the search" if self.at_limit else ""
        return f"temperature {self.value:.4g}{end}: negative log-likelihood {self.nll_before:.4g} -> {self.nll:.4g}"


def fit_temperature(logits: Tensor, labels: Tensor) -> Temperature:
    """Fits the temperature T of given logits. `nft_ext.montecarlo.fit_temperature` fits T of a noisy model.

    T minimises the mean of -log softmax(logits / T)[label] (Guo et al., arXiv 1706.04599). The mean is convex in
    b = 1/T: its slope is E_p[z] - z_label and its curvature is Var_p[z], both averaged over images. The search takes
    Newton's steps on log b in float64, and bisects if a step leaves the bracket of the root.

    Args:
        logits: [n, C], or [S, n, C] of S noisy chips, which are pooled; finite. Use images that neither train nor test
            the network.
        labels: integers [n].

    Returns:
        T and the negative log-likelihood before and after.

    Raises:
        TypeError: an argument is not a tensor.
        ValueError: a wrong shape, labels out of range, logits that are not finite.
    """
    logits = _checked(logits, labels)
    labels = labels.long()
    note = probability_note(logits.flatten(0, 1))
    if note is not None:
        warnings.warn(f"{note}: no temperature makes their softmax calibrated; give logits", stacklevel=2)
    low, high = (math.log(1 / limit) for limit in reversed(LIMITS))  # of log b
    at = 0.0
    before, slope, curvature = _likelihood(logits, labels, at)
    nll = before
    if _all_right(logits, labels):  # the likelihood grows as T falls, until the slope is rounding
        return Temperature(LIMITS[0], _likelihood(logits, labels, high)[0], before, at_limit=True)
    while high - low > TOLERANCE:
        low, high = (low, at) if slope > 0 else (at, high)
        newton = at - slope / curvature if curvature > 0 else math.inf
        if abs(newton - at) < TOLERANCE:
            break
        at = newton if low < newton < high else 0.5 * (low + high)
        nll, slope, curvature = _likelihood(logits, labels, at)
    value = math.exp(-at)
    at_limit = min(abs(at - math.log(limit)) for limit in LIMITS) < 1e-6
    return Temperature(value, nll, before, at_limit)


def _all_right(logits: Tensor, labels: Tensor) -> bool:
    """Whether the label has the largest logit for every image on every chip."""
    target = logits.gather(2, labels.to(logits.device).expand(len(logits), -1).unsqueeze(2)).squeeze(2)
    return bool((target >= logits.amax(dim=2)).all())


def _likelihood(logits: Tensor, labels: Tensor, log_b: float) -> tuple[float, float, float]:
    """Mean negative log-likelihood at b = exp(log_b), and its first and second derivative by log_b.

    d/d(log b) = b * g and d2/d(log b)2 = b * g + b^2 * v; g and v are the derivatives by b.
    """
    b = math.exp(log_b)
    chips, images, classes = logits.shape
    nll = g = v = 0.0
    rows = max(1, PART // classes)
    for chip in logits:
        for start in range(0, images, rows):
            z = chip[start : start + rows].double()
            target = z.gather(1, labels[start : start + rows].to(z.device).unsqueeze(1)).squeeze(1)
            log_p = (b * z).log_softmax(dim=1)
            p = log_p.exp()
            mean = (p * z).sum(dim=1)
            nll -= float(log_p.gather(1, labels[start : start + rows].to(z.device).unsqueeze(1)).sum())
            g += float((mean - target).sum())
            v += float((p * (z - mean.unsqueeze(1)) ** 2).sum())
    n = chips * images
    return nll / n, b * g / n, b * g / n + b * b * v / n


def _checked(logits: Any, labels: Any) -> Tensor:
    """Checks both arguments; returns `logits` as [S, n, C]."""
    if not (isinstance(logits, Tensor) and isinstance(labels, Tensor)):
        fail(
            "logits",
            "must be a tensor, and labels too",
            f"{type(logits).__name__} and {type(labels).__name__}",
            TypeError,
        )
    if logits.dim() not in (2, 3) or logits.numel() == 0 or logits.shape[-1] < 2 or not logits.is_floating_point():
        rule = "must be floating-point, of shape [n, C] or [S, n, C] with C >= 2 classes, not empty"
        fail("logits", rule, f"{logits.dtype} {list(logits.shape)}")
    logits = logits.detach() if logits.dim() == 3 else logits.detach().unsqueeze(0)
    if labels.dim() != 1 or labels.dtype not in INTEGERS or len(labels) != logits.shape[1]:
        fail(
            "labels",
            f"must be one integer per image, shape [{logits.shape[1]}]",
            f"{labels.dtype} {list(labels.shape)}",
        )
    if labels.min() < 0 or labels.max() >= logits.shape[2]:
        fail(
            "labels",
            f"must lie in 0..{logits.shape[2] - 1}, one logit per class",
            int(labels.min() if labels.min() < 0 else labels.max()),
        )
    if not bool(logits.isfinite().all()):
        fail("logits", "must be finite", "NaN or infinity")
    return logits


class Tempered(nn.Module):
    """A model whose logits are divided by `temperature`; see `tempered`."""

    def __init__(self, model: nn.Module, temperature: float):
        super().__init__()
        self.model = model
        self.temperature = temperature

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The model's logits divided by the temperature; `args` and `kwargs` go to the model."""
        return logits_of(self.model(*args, **kwargs)) / self.temperature

    def extra_repr(self) -> str:
        """The temperature, for repr."""
        return f"temperature={self.temperature:g}"


def tempered(model: nn.Module, temperature: float | Temperature) -> Tempered:
    """Wraps `model` so that its logits are divided by `temperature`.

    The wrapper holds the same module, and every layer keeps the stream that it got at `nft.convert`. So
    `monte_carlo(tempered(model, T), ...)` evaluates the same chips as `monte_carlo(model, ...)`. The accuracy stays the
    same; EKL, NLL and the calibration error change.

    Args:
        model: model that returns logits.
        temperature: number > 0, or the outcome of `fit_temperature`.

    Returns:
        The wrapped model.

    Raises:
        TypeError: `model` is not a module.
        ValueError: `temperature` is not a finite number > 0.
    """
    module("model", model)
    value = number("temperature", temperature.value if isinstance(temperature, Temperature) else temperature)
    if value <= 0:
        fail("temperature", "must be > 0", value)
    return Tempered(model, value)
