"""`calibrate`: the ranges of a model's converters, from the values that data makes."""

from __future__ import annotations

import contextlib
import math
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from nft_ext._common.checks import boolean, fail, number
from nft_ext._common.functions import callable_or_none
from nft_ext.nn.base import check_noisy
from nft_ext.nn.batch import default_forward
from nft_ext.nn.calibration_report import Calibration, CalibrationRow
from nft_ext.nn.chip_inputs import moved, tensors_of
from nft_ext.nn.contexts import chips, noise
from nft_ext.nn.converters import ADC, DAC, ConvertingLayer, without_converters
from nft_ext.nn.magnitudes import Magnitudes

Forward = Callable[[nn.Module, Any], Any]
_BATCH = 128  # examples per pass of a data set, or of tensors


def calibrate(
    model: nn.Module,
    data: Any,
    percentile: float = 99.9,
    noise: bool = False,
    forward: Forward | None = None,
) -> tuple[nn.Module, Calibration]:
    """Finds the ranges of the model's converters in one pass over the data.

    Converters are off in the pass. A range covers `percentile` of the magnitudes that are not zero, rounded up by less
    than 0.1 %. Inputs that are never negative get an unsigned range. The model runs in eval mode without gradients.
    Calibrate again after training: the range of the sums depends on the weights.

    Args:
        model: a model whose device has input_bits or output_bits. Its buffers `dac_range` and `adc_range` are set.
        data: a DataLoader or another iterable of batches, a Dataset, a tensor, or a tuple of tensors with examples
            along dim 0. The model gets what `nft_ext.monte_carlo` gives it: of a tuple all but the last entry.
        percentile: share of the magnitudes within a range, in percent, above 0 and at most 100. 100: their maximum.
        noise: False: the sums of the quantized weights. True: each batch runs on a chip of its own, with noise.
        forward: forward(model, batch), for batches that the model does not take by itself.

    Returns:
        `model` itself, and a report. `print(report)` shows each layer's ranges, its clipping rates, and what its
        converters alone cost.

    Raises:
        TypeError: a wrong type.
        ValueError: no layer with converters, no batch, a percentile out of range, or values that are not finite. No
            range has changed then.
    """
    layers = {name: m for name, m in check_noisy(model).items() if isinstance(m, ConvertingLayer) and _converts(m)}
    percentile = number("percentile", percentile, 0.0, 100.0)
    if percentile == 0:
        fail("percentile", "must be above 0", percentile)
    boolean("noise", noise)
    run = callable_or_none("forward", forward, "forward(model, batch)") or default_forward
    if not layers:
        fail("model", "must have layers with input_bits or output_bits to calibrate", type(model).__name__)
    home = next(iter(layers.values())).here
    seen = {layer: _Seen(layer) for layer in layers.values()}
    first: Any = None
    with _quiet(model):
        for number_, batch in enumerate(_batches(data)):
            batch = moved(batch, home)
            first = batch if number_ == 0 else first
            with _watched(seen), _condition(model, noise, number_):
                run(model, batch)
        if first is None:
            fail("data", "must hold at least one batch", "none")
        for name, layer in layers.items():
            seen[layer].check_finite(name)
        for layer, found in seen.items():
            found.set_ranges(layer, percentile)
        errors, whole = _costs(model, layers, run, first)
    rows = [seen[layer].row(name, layer, errors[layer]) for name, layer in layers.items()]
    report = Calibration(rows, percentile, noise, whole)
    if left := [row.name for row in rows if not row.complete]:
        rest = "These layers did not run, or got zeros only, so they stay without ranges"
        warnings.warn(f"calibrate: {rest}: {', '.join(left)}", stacklevel=2)
    return model, report


def _converts(layer: ConvertingLayer) -> bool:
    return layer.nvm.has_converters


class _Seen:
    """What one layer's converters met."""

    def __init__(self, layer: ConvertingLayer) -> None:
        here = layer.here
        self.inputs = Magnitudes(here) if layer.nvm.input_bits is not None else None
        self.sums = Magnitudes(here) if layer.nvm.output_bits is not None else None
        self.input_range: tuple[float, float] | None = None
        self.output_range: float | None = None

    def __call__(self, layer: ConvertingLayer, x: Tensor) -> Tensor:
        """The layer's forward in the pass: ideal, and watched."""
        if self.inputs is not None:
            self.inputs.add(x)
        if self.sums is None:
            return layer.ideal(x)
        return layer.array_product(x, None, self.sums.add)

    def check_finite(self, name: str) -> None:
        for what, found in (("inputs", self.inputs), ("sums", self.sums)):
            if found is not None and not found.finite:
                fail("data", f"must give finite {what} of every layer", f"NaN or infinity at {name!r}")

    def set_ranges(self, layer: ConvertingLayer, percentile: float) -> None:
        """Finds the ranges and writes them into the layer's buffers."""
        if self.inputs is not None and layer.nvm.input_range == "static" and self.inputs.largest > 0:
            high = self.inputs.range(percentile)
            self.input_range = (-high if self.inputs.negative else 0.0), high
            _write(layer, DAC, self.input_range)
        if self.sums is not None:
            dead = self.sums.count and not bool(layer.weight.any())  # all sums are zero, whatever the inputs are
            if dead or self.sums.largest > 0:
                self.output_range = self.sums.range(percentile)
                _write(layer, ADC, self.output_range)

    def row(self, name: str, layer: ConvertingLayer, error: float | None) -> CalibrationRow:
        static = self.inputs is not None and layer.nvm.input_range == "static"
        clipped = [
            None if found is None or limit is None else found.share_above(limit)
            for found, limit in (
                (self.inputs, self.input_range and self.input_range[1]),
                (self.sums, self.output_range),
            )
        ]
        complete = (self.input_range is not None or not static) and (self.output_range is not None or not self.sums)
        return CalibrationRow(
            name=name,
            input_bits=layer.nvm.input_bits,
            input_range=self.input_range,
            input_clipping=clipped[0],
            output_bits=layer.nvm.output_bits,
            output_range=self.output_range,
            output_clipping=clipped[1],
            error=error,
            complete=complete,
        )


def _write(layer: ConvertingLayer, buffer: str, value: Any) -> None:
    past = layer._buffers[buffer]
    assert past is not None
    past.copy_(torch.tensor(value, dtype=torch.float32))


# ---- what converters cost


class _Cost:
    """A layer's forward that compares both results and passes on the ideal one."""

    def __init__(self) -> None:
        self.squares, self.count = torch.zeros(2, dtype=torch.float64), 0

    def __call__(self, layer: ConvertingLayer, x: Tensor) -> Tensor:
        ideal = layer.ideal(x)
        self.squares += _squares(layer.converted(x, layer.ideal), ideal)
        return ideal

    @property
    def error(self) -> float | None:
        return _ratio(self.squares)


def _costs(
    model: nn.Module, layers: dict[str, ConvertingLayer], run: Forward, batch: Any
) -> tuple[dict[ConvertingLayer, float | None], float | None]:
    """Relative rms errors for one batch without noise: of each layer on ideal inputs, and of the model's result."""
    costs = {layer: _Cost() for layer in layers.values()}
    ready = [layer for layer in layers.values() if not any(_unknown(layer, buffer) for buffer in (DAC, ADC))]
    without_ranges = [layer for layer in layers.values() if layer not in ready]
    with _condition(model, False, 0), without_converters(without_ranges):
        with _watched({layer: costs[layer] for layer in ready}):
            ideal = tensors_of(run(model, batch))
        found = tensors_of(run(model, batch))
    total = torch.zeros(2, dtype=torch.float64)
    for one, other in zip(found, ideal):
        if one.is_floating_point() and one.shape == other.shape:
            total += _squares(one, other)
    return {layer: cost.error for layer, cost in costs.items()}, _ratio(total)


def _unknown(layer: ConvertingLayer, buffer: str) -> bool:
    value = layer._buffers.get(buffer)
    return value is not None and bool(value.isnan().any())


def _squares(found: Tensor, ideal: Tensor) -> Tensor:
    pair = torch.stack([(found - ideal).double().square().sum(), ideal.double().square().sum()])
    return pair.cpu()


def _ratio(squares: Tensor) -> float | None:
    difference, whole = squares.tolist()
    return math.sqrt(difference / whole) if whole > 0 else None


# ---- the passes


def _batches(data: Any) -> Iterator[Any]:
    if isinstance(data, Tensor):
        yield from data.split(_BATCH)
    elif isinstance(data, tuple) and data and all(isinstance(part, Tensor) for part in data):
        if len({len(part) if part.dim() else 0 for part in data}) != 1:
            fail("data", "must have tensors of one length", str([list(part.shape) for part in data]))
        yield from zip(*(part.split(_BATCH) for part in data))
    elif isinstance(data, Dataset):
        yield from DataLoader(data, batch_size=_BATCH)
    elif isinstance(data, Iterable) and not isinstance(data, (str, bytes)):
        yield from data
    else:
        fail("data", "must be batches, a Dataset, a tensor or a tuple of tensors", type(data).__name__, TypeError)


@contextlib.contextmanager
def _condition(model: nn.Module, noisy: bool, number_: int) -> Iterator[None]:
    # With a chip of its own, a pass draws nothing from torch's generator, also without noise.
    with noise(model, enabled=noisy), chips(model, draws=[number_], domain="selection"):
        yield


@contextlib.contextmanager
def _watched(watchers: dict[ConvertingLayer, Any]) -> Iterator[None]:
    """Context in which layers run by the forwards given."""
    try:
        for layer, watcher in watchers.items():
            layer.__dict__["_watched_by"] = watcher
        yield
    finally:
        for layer in watchers:
            layer.__dict__.pop("_watched_by", None)


@contextlib.contextmanager
def _quiet(model: nn.Module) -> Iterator[None]:
    """Eval mode, no gradients, no compiled graphs; all as before at the end."""
    training = [m for m in model.modules() if m.training]
    model.eval()
    eager = torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else contextlib.nullcontext()
    try:
        with torch.no_grad(), eager:
            yield
    finally:
        for m in training:
            m.training = True
