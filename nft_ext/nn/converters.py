"""Noisy layers with converters: ranges as buffers, the forward behind DAC and ADC, and hooks for calibration.

Only Linear and Conv2d have converters: their product is this package's own. Any other module multiplies in torch's
code, where no sum of an array can be seen.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from nft_ext._common.checks import fail
from nft_ext.device import NVMDevice
from nft_ext.nn import recomputation
from nft_ext.nn.base import NoisyLayer
from nft_ext.ops import autograd, functions, operators
from nft_ext.ops.converters import Convolution, Watch, convert_input, converted_product
from nft_ext.ops.functional import Crossbar, for_kernels
from nft_ext.ops.operands import dtype_in_autocast

DAC, ADC = "dac_range", "adc_range"  # the buffers
_SHAPES = {DAC: (2,), ADC: ()}


class ConvertingLayer(NoisyLayer):
    """Mixin before nn.Linear or nn.Conv2d: a noisy layer that can have converters.

    Attributes:
        dac_range: buffer float32 [2], (low, high) of the DAC; low is 0 if inputs are never negative. Only with
            input_bits and a static range. NaN before calibration.
        adc_range: buffer float32 [], the largest sum in steps. Only with output_bits. NaN before calibration.
    """

    begins = (*NoisyLayer.begins, "in_steps")
    converters_served = True
    converts = True  # off in checks that compare results: one unit in the last place may become one level
    _watched_by: Callable[[Any, Tensor], Tensor] | None = None  # calibration's own forward
    _checked: dict[str, tuple] | None = None  # buffers that were seen to be calibrated

    bias: Tensor | None
    example_dims: int  # dimensions of one example

    def attach(self, nvm: NVMDevice, name: str | None = None, stream: Any = 0) -> None:
        past = self.__dict__.get("nvm")
        super().attach(nvm, name, stream)
        wanted = {DAC: nvm.input_bits is not None and nvm.input_range == "static", ADC: nvm.output_bits is not None}
        # A range of sums holds for its steps and its tiles.
        kept = {DAC: True, ADC: past is not None and _tiling(past) == _tiling(nvm)}
        buffers = dict(self._buffers)  # a copy, so that a failed conversion in place leaves the module as it was
        for buffer, shape in _SHAPES.items():
            known = buffers.pop(buffer, None)
            if wanted[buffer]:
                new = known is None or not kept[buffer]
                here = self.anchor.device
                buffers[buffer] = torch.full(shape, torch.nan, device=here) if new else known
        self.__dict__.update(_buffers=buffers, _checked=None)

    # ---- the forward

    def forward_on_array(self, x: Tensor, ideal: Callable[[Tensor], Tensor]) -> Tensor:
        """The layer's result for x: by `ideal(x)`, its product without converters, or behind converters."""
        nvm = self.nvm
        if not (self.converts and nvm.has_converters):
            return ideal(x)
        if self._watched_by is not None:
            return self._watched_by(self, x)
        return self.converted(x, ideal)

    def converted(self, x: Tensor, ideal: Callable[[Tensor], Tensor]) -> Tensor:
        """The layer's result behind its converters."""
        x = self.converted_input(x)
        return ideal(x) if self.nvm.output_bits is None else self.array_product(x, self.calibrated(ADC))

    def ideal(self, x: Tensor) -> Tensor:
        """The layer's result without converters."""
        raise NotImplementedError

    def converted_input(self, x: Tensor) -> Tensor:
        """x behind the DAC; x itself without one."""
        nvm = self.nvm
        if nvm.input_bits is None:
            return x
        limits = self.calibrated(DAC) if nvm.input_range == "static" else None
        return convert_input(x, nvm.input_bits, limits, self.example_dims)

    def calibrated(self, buffer: str) -> Tensor:
        """A range, checked.

        Raises:
            RuntimeError: it is not known yet.
        """
        found = self._buffers[buffer]
        assert found is not None
        # In a compiled graph, or while a CUDA graph is captured, an unknown range gives NaN.
        if torch.compiler.is_compiling() or found.is_meta:
            return found
        if found.is_cuda:
            if torch.cuda.is_current_stream_capturing():
                return found
            stamp = (id(found), None if found.is_inference() else found._version)
            if self._checked is not None and self._checked.get(buffer) == stamp and stamp[1] is not None:
                return found
            self.__dict__["_checked"] = {**(self._checked or {}), buffer: stamp}
        if bool(found.isnan().any()):
            self.__dict__["_checked"] = None
            dynamic = ' use input_range="dynamic",' if buffer == DAC else ""
            rule = f"must be calibrated: call nft_ext.calibrate(model, data),{dynamic} or load a state_dict with ranges"
            fail(f"{self.name or type(self).__name__}.{buffer}", rule, "no range", RuntimeError)
        return found

    def array_product(self, x: Tensor, limit: Tensor | None, watch: Watch | None = None) -> Tensor:
        """The product tile by tile, with the bias; sums are converted if there is a limit."""
        raise NotImplementedError

    def tile_product(
        self,
        x: Tensor,
        in_steps: tuple[Tensor, Tensor],
        convolution: Convolution | None,
        limit: Tensor | None,
        watch: Watch | None,
    ) -> Tensor:
        """The sum over tiles for a checked x, in autocast's type; computed in float32, or float64 for float64."""
        weights, step = in_steps
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        steps = step.expand(weights.shape[1], 1) if step.dim() == 0 else step[0].reshape(weights.shape[1], -1)
        kind, bits = x.device.type, self.nvm.output_bits or 0
        off = contextlib.nullcontext() if kind == "meta" else torch.autocast(kind, enabled=False)
        with off:
            limit = None if limit is None else limit.to(wide)
            operands = x.to(wide), weights.to(wide), steps.to(wide)
            y = converted_product(*operands, self.nvm.array_rows, convolution, limit, bits, watch)
            if self.bias is not None:
                y = y + self.bias.to(wide).view(-1, *[1] * (y.dim() - 2))
        return y.to(dtype_in_autocast(x))

    # ---- weights in steps

    def in_steps(self) -> tuple[Tensor, Tensor]:
        """(programmed weights in units of the step [S, *weight.shape], the steps) for one forward."""
        held: Any = self._programmed
        if isinstance(held, tuple) and not torch.is_grad_enabled() and not autograd.is_special():
            if not torch.compiler.is_compiling():
                if self._owner is not None:
                    self.check_caller()
                recomputation.note_forward(self, True)
            return held
        return weights_in_steps(self.crossbar())

    def hold_in_steps(self) -> None:
        """Programs the weights for the present chips, for later forwards behind an ADC."""
        with torch.no_grad():
            self.__dict__["_programmed"] = weights_in_steps(self.crossbar(forward=False))

    @property
    def holds_steps(self) -> bool:
        """Whether programmed weights are held in units of the step."""
        return self.converts and self.nvm.output_bits is not None

    def hold_programmed(self, weights: Any, scaled: bool = False) -> None:
        if not self.holds_steps:
            super().hold_programmed(weights, scaled)
            return
        # Weights that no device model made, as those without the quantizer: the step divides them.
        (w_p,) = weights
        step = self.codes_and_step(self.weight.detach().float())[1]
        full = _per_weight(step, w_p[0], self._spec[5])
        self.__dict__["_programmed"] = torch.where(full == 0, 0.0, w_p.float() / full), step

    def _apply(self, fn, recurse=True):
        """Moves the ranges, but keeps them float32."""
        ranges = {name: value for name in _SHAPES if (value := self._buffers.get(name)) is not None}
        super()._apply(fn, recurse)
        for name, value in ranges.items():
            moved = self._buffers[name]
            if moved is not None and moved.dtype != torch.float32:
                self._buffers[name] = value.to(moved.device)
        self.__dict__["_checked"] = None
        return self


def weights_in_steps(bar: Crossbar) -> tuple[Tensor, Tensor]:
    """(programmed weights in steps [S, *weight.shape] float32, their steps): as programmed with a step of one.

    The gradient of the weights goes straight through to the master weight.
    """
    bar = for_kernels(bar)
    bits, scaling = bar.spec[0], bar.spec[4:]
    with torch.no_grad():
        step = operators.ops.weight_step(bar.weight, bits, scaling) if bar.step is None else bar.step
        codes = operators.ops.quantize(bar.weight, step, bits, scaling) if bar.codes is None else bar.codes
        ones = torch.ones_like(step)
    program = operators.ops.program.default
    unit = bar._replace(codes=codes, step=ones)
    return operators.call(functions.Program, program, *unit, torch.float32), step


def drop_ranges(layer: Any) -> None:
    """Removes the ranges of a layer that becomes plain."""
    layer.__dict__["_buffers"] = {name: value for name, value in layer._buffers.items() if name not in _SHAPES}
    for name in ("_checked", "_watched_by", "converts"):
        layer.__dict__.pop(name, None)


@contextlib.contextmanager
def without_converters(layers: list[Any]) -> Iterator[None]:
    """Context in which the layers have ideal converters."""
    before = [layer.__dict__.get("converts") for layer in layers]
    for layer in layers:
        layer.__dict__["converts"] = False
    try:
        yield
    finally:
        for layer, past in zip(layers, before):
            if past is None:
                layer.__dict__.pop("converts", None)
            else:
                layer.__dict__["converts"] = past


def _tiling(nvm: NVMDevice) -> tuple:
    return nvm.weight_bits, nvm.scale, nvm.array_rows


def _per_weight(step: Tensor, weight: Tensor, rows: int) -> Tensor:
    """The step of every weight [out, ...], from steps [], [1, out] or [1, out, T]."""
    if step.dim() == 0:
        return step
    steps = step[0].reshape(weight.shape[0], -1)
    if steps.shape[1] > 1:
        steps = steps.repeat_interleave(rows, 1)[:, : weight[0].numel()]
        return steps.reshape(weight.shape)
    return steps.view(-1, *[1] * (weight.dim() - 1))
