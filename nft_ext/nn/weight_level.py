"""Layers of any kind on crossbars: the module's own forward runs on programmed weights.

Linear and Conv2d have operators that program and multiply in one call. Every other module is served here: `program`
makes W_p, straight-through, and the module computes with it (nft_ext/nn/own_classes.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nft_ext._common.checks import fail
from nft_ext.device import NVMDevice
from nft_ext.nn import recomputation
from nft_ext.nn.base import ANYWHERE, NoisyLayer
from nft_ext.nn.chip_inputs import combined, of_chips, tensors_of
from nft_ext.nn.crossbars import matrices
from nft_ext.nn.effective import refresh
from nft_ext.nn.own_classes import names_of, noisy_class, plain_class, rebuilt, swaps_itself, view_of
from nft_ext.ops import autograd, functions, operators
from nft_ext.ops.functional import Crossbar, for_kernels
from nft_ext.ops.operands import check_tensor

# (weight, nvm, stream, key, layout, groups) -> a method's own noisy weight, of the weight's shape
Injection = Callable[[Tensor, NVMDevice, int, Tensor, str, int], Tensor]


@dataclass(eq=False)
class PlacedMatrix:
    """One matrix of a layer: how it is stored, its name and its stream."""

    parameter: str  # its name in the module
    layout: str  # see nft_ext/nn/crossbars.py
    groups: int
    shape: tuple[int, ...]
    name: str | None = None  # qualified; None before a model gives one
    stream: int = 0
    _met_as: str | None = None  # as of a layer

    @property
    def stored(self) -> tuple[str, int]:
        """Layout and groups, as `NVMDevice.operator_scaling` takes them."""
        return self.layout, self.groups if self.layout == "io" else 1


class WeightLevelLayer(NoisyLayer):
    """Mixin before a module's own class. Made by `nft_ext.convert`, not by hand.

    All matrices of a layer are on the same chips, each with its own stream. A forward on several chips runs the module
    once per chip, with that chip's rows of every input.
    """

    begins = ("weights_for_forward",)
    one_operator = False
    injectable: Injection | None = None  # what a training method puts in place of the device's noise
    injecting = False  # whether forwards use it
    _placed: list[PlacedMatrix]
    _name: str | None
    _swapped: dict[str, Any] | None = None  # the weights that attributes give: of a view, or in a compiled graph

    def attach(self, nvm: NVMDevice, name: str | None = None, stream: Any = ()) -> None:
        if "_placed" not in self.__dict__:
            shapes = [tuple(weight.shape) for weight in _read(self, [m.parameter for m in matrices(self)])]
            self.__dict__["_placed"] = [PlacedMatrix(*m, shape) for m, shape in zip(matrices(self), shapes)]
        super().attach(nvm, name, stream)

    # ---- names, streams, weights

    @property
    def name(self) -> str | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.__dict__.get("_name")

    @name.setter
    def name(self, name: str | None) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        self.__dict__["_name"] = name
        for matrix in self._placed:
            matrix.name = None if name is None else qualified(name, matrix.parameter)

    @property
    def stream(self) -> int | tuple[int, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The stream of the only matrix, or those of all."""
        streams = tuple(matrix.stream for matrix in self._placed)
        return streams[0] if len(streams) == 1 else streams

    @stream.setter
    def stream(self, streams: int | tuple[int, ...]) -> None:
        for matrix, stream in zip(self._placed, streams if isinstance(streams, tuple) else (streams,)):
            matrix.stream = stream

    @property
    def anchor(self) -> Tensor:
        for value in self._parameters.values():
            if value is not None:
                return value
        # A replica of DataParallel holds its weights as plain attributes.
        held = (self.__dict__.get(name) for name in names_of(type(self))[0])
        found = next((value for value in held if isinstance(value, Tensor)), None)
        return next(self.parameters()) if found is None else found

    @property
    def weight_count(self) -> int:
        return sum(torch.Size(matrix.shape).numel() for matrix in self._placed)

    def matrices(self) -> list[PlacedMatrix]:
        return self._placed

    def matrices_by_name(self, name: str) -> dict[str, PlacedMatrix]:
        return {qualified(name, matrix.parameter): matrix for matrix in self._placed}

    def settle_name(self, name: str) -> None:
        if self.name is None or any(m._met_as == qualified(name, m.parameter) for m in self._placed):
            self.__dict__["_name"] = name

    def master_weights(self) -> list[Tensor]:
        return _read(self, [matrix.parameter for matrix in self._placed])

    def crossbars(self) -> list[Crossbar]:
        for matrix in self._placed:
            refresh(self, matrix.parameter)
        return self._crossbars(torch.compiler.is_compiling(), forward=False)

    def _crossbars(self, compiling: bool, forward: bool) -> list[Crossbar]:
        weights = self.master_weights()
        table, key, spec = self.noise_for(weights[0], compiling, forward)
        if not compiling:
            for weight, matrix in zip(weights[1:], self._placed[1:]):
                check_tensor(matrix.name or matrix.parameter, weight)
        # Only the scaling of a spec depends on the matrix.
        scalings = [self.nvm.operator_scaling(*matrix.stored) for matrix in self._placed]
        specs = [[*spec[:4], *scaling] for scaling in scalings]
        return [Crossbar(w, None, None, table, key, m.stream, s) for w, m, s in zip(weights, self._placed, specs)]

    # ---- the state of contexts

    def noise_state(self) -> tuple:
        return *super().noise_state(), self.injecting

    def set_noise_state(self, state: tuple) -> None:
        *rest, self.__dict__["injecting"] = state
        super().set_noise_state(tuple(rest))

    def hold_programmed(self, weights: Any, scaled: bool = False) -> None:
        own = [self._parameters.get(matrix.parameter) for matrix in self._placed]
        types = [self.anchor.dtype if parameter is None else parameter.dtype for parameter in own]
        self.__dict__["_programmed"] = tuple(held.to(dtype) for held, dtype in zip(weights, types))

    def leave_contexts(self) -> None:
        """Makes a copy of the layer usable outside of the contexts in which it was made."""
        owner = None if self._entry is None else ANYWHERE
        self.__dict__.update(shares_codes=False, _programmed=None, _last=None, _changes=[], _owner=owner)

    def __reduce_ex__(self, protocol: Any) -> tuple:
        kind = type(self)
        if not swaps_itself(self) or is_parametrized_layer(self):
            return super().__reduce_ex__(protocol)  # pyright: ignore[reportReturnType]  (torch says that parametrized modules have a state_dict only)
        return _unpickled, (plain_class(self, WeightLevelLayer), *names_of(kind)), self.__getstate__()

    # ---- the forward

    def forward_on_chips(self, args: tuple, kwargs: dict) -> Any:
        """The module's own forward on programmed weights."""
        if self._swapped is not None:  # the forward calls itself
            return super().forward(*args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        weights = self.weights_for_forward()
        chips = weights[0].shape[0]
        if chips == 1:
            return self._run([weight[0] for weight in weights], args, kwargs)
        self._check_rows((args, kwargs), chips)
        results = []
        for chip in range(chips):
            mine = of_chips(args, chips, [chip]), of_chips(kwargs, chips, [chip])
            results.append(self._run([weight[chip] for weight in weights], *mine))
        return combined(results)

    def weights_for_forward(self) -> list[Tensor]:
        """W_p of each matrix for one forward, [S, *shape] in the weight's own type."""
        compiling = torch.compiler.is_compiling()
        held: Any = self._programmed
        if held is not None and not torch.is_grad_enabled() and not autograd.is_special():
            if not compiling:
                if self._owner is not None:
                    self.check_caller()
                recomputation.note_forward(self, True)  # pyright: ignore[reportArgumentType]
            return list(held)
        bars = self._crossbars(compiling, forward=True)
        if self.injecting and self.injectable is not None and self.noise_enabled:
            placed = zip(bars, self._placed)
            return [self.injectable(b.weight, self.nvm, b.stream, b.key, *m.stored)[None] for b, m in placed]
        return [programmed(bar) for bar in bars]

    def note_reads(self, attributes: set[str]) -> None:
        """Called after a forward with the attributes that it read, of those that hold matrices."""

    def _run(self, weights: list[Tensor], args: tuple, kwargs: dict) -> Any:
        seen: set[str] = set()
        swapped = self._by_attribute(weights)
        if torch.compiler.is_compiling() and swaps_itself(self):
            self._swapped = swapped
            try:
                return super().forward(*args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
            finally:
                self._swapped = None
        view = view_of(self, swapped, seen)
        result = super(WeightLevelLayer, view).forward(*args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        self.note_reads(seen)
        return result

    def _by_attribute(self, weights: list[Tensor]) -> dict[str, Any]:
        """The weights by attribute of the module; a view of a child in place of the child."""
        found: dict[str, Any] = {}
        for matrix, weight in zip(self._placed, weights):
            child, _, name = matrix.parameter.rpartition(".")
            if child:
                read = self.get_submodule(child)
                if not isinstance(read, nn.Linear):  # a wrapper calls its own Linear, which has no noise
                    rule = "must be the Linear whose weight the layer reads: restore before wrapping it, then convert"
                    fail(f"{self.name or type(self).__name__}.{child}", rule, type(read).__name__)
                found[child] = view_of(read, {name: weight}, set())
            else:
                found[name] = weight
        return found

    def _check_rows(self, inputs: Any, chips: int) -> None:
        for tensor in tensors_of(inputs):
            if tensor.dim() and tensor.shape[0] % chips:
                fail(
                    self.name or type(self).__name__,
                    f"must get inputs whose dim 0 is a multiple of the {chips} chips of the key (chip-major)",
                    list(tensor.shape),
                )


def programmed(bar: Crossbar) -> Tensor:
    """W_p [S, *shape] in the weight's own type, with a straight-through gradient."""
    dtype = bar.weight.dtype
    kernel = dtype if has_kernel(dtype, bar.weight.device) else torch.float32
    found = operators.call(functions.Program, operators.ops.program.default, *for_kernels(bar), kernel)
    return found if kernel == dtype else found.to(dtype)


def has_kernel(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether weights can be programmed in this type: others are programmed in float32 and rounded."""
    return dtype in (torch.float32, torch.bfloat16) or (dtype == torch.float16 and device.type == "cuda")


def qualified(name: str, parameter: str) -> str:
    """The name of a matrix: of the layer for a parameter called weight, else with the parameter's."""
    whole = f"{name}.{parameter}" if name else parameter
    return "" if whole == "weight" else whole.removesuffix(".weight")


def is_parametrized_layer(layer: nn.Module) -> bool:
    """Whether torch.nn.utils.parametrize makes one of the layer's tensors."""
    return "parametrizations" in layer._modules


def make_noisy(module: nn.Module) -> None:
    """Gives a plain module its weight-level class."""
    module.__class__ = noisy_class(module, WeightLevelLayer)


def make_plain(layer: nn.Module) -> None:
    """Gives a weight-level layer its own class again."""
    layer.__class__ = plain_class(layer, WeightLevelLayer)


def _read(module: Any, parameters: list[str]) -> list[Tensor]:
    found = []
    for parameter in parameters:
        value = module
        for part in parameter.split("."):
            value = getattr(value, part)
        found.append(value)
    return found


def _unpickled(plain: type[nn.Module], names: tuple[str, ...], children: tuple[str, ...]) -> nn.Module:
    return rebuilt(plain, names, children, WeightLevelLayer)
