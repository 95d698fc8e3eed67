"""A metric of an evaluation: the numbers that it takes from every example, and the figure of their sums."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from nft_ext._common.checks import did_you_mean, fail, items
from nft_ext._common.functions import checked_pairs
from nft_ext.montecarlo.statistics.figure import Figure, ratio
from nft_ext.montecarlo.statistics.tallies import Tallies
from nft_ext.montecarlo.tasks.built_in import NAMES, BuiltIn, is_built_in, metric, top_of

# f(output, batch) -> (numerator [B], denominator [B])
MetricFunction = Callable[[Any, Any], Any]
# names, pairs of a name and a function, or a mapping of both
Metrics = str | BuiltIn | Iterable[Any] | Mapping[str, Any]
RESERVED = ("run", "seed", "sigma")  # columns of a report's CSV file
DIRECTION = "higher_is_better"  # attribute of a metric function


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        name: its name in the report.
        parts: (output, batch) of one chip -> float64 [B, K], numbers that are summed over examples.
        figure: the figure of the sums.
        identity: what decides its value, as JSON.
    """

    name: str
    parts: Callable[[Any, Any], Tensor]
    figure: Figure
    identity: Any

    def tallies(self, parts: list[Tensor]) -> Tallies:
        """Sums over the examples of every chip.

        Args:
            parts: float64 [b, K] of each of S chips.
        """
        sums = {field(self.name): torch.stack([p.sum(dim=0) for p in parts])}
        if self.figure.products is not None:
            products = [torch.stack([p[:, 0] ** 2, p[:, 0] * p[:, 1], p[:, 1] ** 2]).sum(dim=1) for p in parts]
            sums[field(self.name, "products")] = torch.stack(products)
        return Tallies(sums)


def field(name: str, kind: str = "sums") -> str:
    """Name of a metric's sums in tallies and journals."""
    return f"metric {name}: {kind}"


def asked_metrics(metrics: Any) -> dict[str, BuiltIn | MetricFunction]:
    """The argument `metrics` as name -> built-in metric or function, in its order.

    Raises:
        TypeError, ValueError: no metric, an unknown or repeated name, or a function without a name.
    """
    if isinstance(metrics, (str, BuiltIn)):
        metrics = (metrics,)
    pairs = list(metrics.items()) if isinstance(metrics, Mapping) else items("metrics", metrics, "names")
    found: dict[str, BuiltIn | MetricFunction] = {}
    for pair in pairs:
        name, value = _named(pair)
        if name in found:
            fail("metrics", "must hold each name once", name)
        found[name] = value
    if not found:
        fail("metrics", f"must hold at least one of {', '.join(NAMES)}, or a function", "none")
    return found


def _named(entry: Any) -> tuple[str, BuiltIn | MetricFunction]:
    if isinstance(entry, BuiltIn):
        return entry.name, entry
    if isinstance(entry, str):
        if not is_built_in(entry):
            rule = f"must be among {', '.join(NAMES)}, or pairs (name, function){did_you_mean(entry, NAMES)}"
            fail("metrics", rule, entry)
        return entry, metric(entry)
    if not (isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[0], str)):
        rule = "must be names, or pairs (name, function); a function alone has no name in the report"
        fail("metrics", rule, entry if isinstance(entry, (int, float)) else type(entry).__name__)
    name, value = entry
    if isinstance(value, str):  # {"right": "accuracy"}
        value = _named(value)[1]
    if not name or name in RESERVED:
        fail("metrics", f"must have names other than {', '.join(RESERVED)} and the empty one", repr(name))
    if isinstance(value, BuiltIn):
        if is_built_in(name) and name != value.name:
            fail("metrics", f"must not call {value.name!r} by the name of another metric", name)
        return name, value
    if is_built_in(name):
        fail("metrics", "must give a function another name than that of a built-in metric", name)
    if not callable(value) or isinstance(value, type):
        rule = f"must be a function f(output, batch) -> (numerator, denominator) for {name!r}"
        fail("metrics", rule, value if isinstance(value, (int, float)) else type(value).__name__, TypeError)
    if getattr(value, DIRECTION, None) not in (True, False, None):
        fail(f"metrics[{name!r}].{DIRECTION}", "must be True, False or None", repr(getattr(value, DIRECTION)))
    return name, value


def function_metric(name: str, function: MetricFunction, identity: Any) -> Metric:
    """The metric sum of numerators / sum of denominators of a user's function."""

    def parts(output: Any, batch: Any) -> Tensor:
        return checked_pairs(f"metrics[{name!r}]", function(output, batch))

    higher = getattr(function, DIRECTION, None)
    return Metric(name, parts, ratio_of(name, higher), ["function", identity, higher])


def ratio_of(name: str, higher_is_better: bool | None, **kind: bool) -> Figure:
    """The figure of a metric whose parts are a numerator and a denominator. kind: share, right_or_wrong of `Figure`."""
    return ratio(name, _sums(name), _products(name), higher_is_better=higher_is_better, **kind)


def built_in_figure(name: str, kind: str) -> Figure:
    """The figure of the built-in metric `kind`, called `name` in the report."""
    if kind == "perplexity":
        return Figure(name, _sums(name), _perplexity, _perplexity_gradient, _products(name), higher_is_better=False)
    if kind == "miou":
        return Figure(name, _sums(name), _mean_iou, _mean_iou_gradient, higher_is_better=True)
    top = top_of(kind) is not None
    share = top or kind == "token_accuracy"
    return ratio_of(name, share or kind == "r2", share=share, right_or_wrong=top)


def _sums(name: str) -> Callable[[Tallies], ndarray]:
    return lambda tallies: tallies[field(name)].numpy()


def _products(name: str) -> Callable[[Tallies], ndarray]:
    def products(tallies: Tallies) -> ndarray:
        return tallies[field(name, "products")].numpy()[:, [0, 1, 1, 2]].reshape(-1, 2, 2)

    return products


def _perplexity(sums: ndarray) -> ndarray:
    return np.exp(sums[..., 0] / sums[..., 1])


def _perplexity_gradient(sums: ndarray) -> ndarray:
    return _perplexity(sums) * np.array([1.0, -sums[0] / sums[1]]) / sums[1]


def _mean_iou(sums: ndarray) -> ndarray:
    """Mean over the classes that occur in labels or predictions of both / either."""
    both, either = np.split(sums, 2, axis=-1)
    some = either > 0
    return np.where(some, both / np.where(some, either, 1.0), 0.0).sum(-1) / some.sum(-1)


def _mean_iou_gradient(sums: ndarray) -> ndarray:
    both, either = np.split(sums, 2)
    some = either > 0
    inverse = np.where(some, 1 / np.where(some, either, 1.0), 0.0) / some.sum()
    return np.concatenate([inverse, -both * inverse * np.where(some, 1 / np.where(some, either, 1.0), 0.0)])
