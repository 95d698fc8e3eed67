"""The base of noisy layers: device model, random stream and the present chips."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar, cast

import torch
from torch import Tensor, nn

from nft_ext._common.checks import fail, module
from nft_ext.device import NVMDevice
from nft_ext.nn import recomputation
from nft_ext.nn.names import named, select
from nft_ext.nn.streams import name_layers
from nft_ext.ops import autograd, operators
from nft_ext.ops.functional import Crossbar, own_table
from nft_ext.ops.keys import fresh_key
from nft_ext.ops.operands import check_tensor, dtype_in_autocast, is_ordinary

_Kind = TypeVar("_Kind", bound=nn.Module)
_STATE = ("_table", "_key", "_programmed")
ANYWHERE = 0  # in place of a thread: copies made inside a context, and replicas of DataParallel


class NoisyLayer(nn.Module):
    """Mixin before nn.Linear, nn.Conv2d, or the class of any other layer with a matrix.

    Noise is on unless the context nft_ext.noise turns it off; train() and eval() do not change it. Outside
    nft_ext.chips every forward is a new chip, its seed drawn from torch's generator.

    Key and table are tensors that contexts replace. So one compiled graph serves all keys and sigmas. They are no
    buffers, because DistributedDataParallel broadcasts buffers, and averages of models average them.

    Every forward reads the weight. Nothing computed from it is kept for a later forward, except inside
    `chips(programmed=True)`. So every write to the weight counts, through .data or memory shared with it too.
    """

    weight: Tensor
    name: str | None
    _table: Tensor
    _key: Tensor | None
    _programmed: Tensor | None
    _changes: list  # of the contexts that this layer is in, see nft_ext/nn/scopes.py
    _owner: int | None  # the thread that is in them
    _entry: Any  # where several chips come in, see nft_ext/nn/entry.py; None with one chip
    scaled = False  # whether the rows of _programmed are multiplied by row_scale
    _met_as: str | None = None  # the name from a context's model, of a layer that `convert` has not named
    shares_codes = False  # whether a forward hands its quantized weight to its backward
    unquantized = False  # whether its weights are held without the quantizer, see nft_ext/nn/conditions.py

    # A forward begins with one of these methods.
    begins: tuple[str, ...] = ("programmed", "injected_weight", "crossbar")
    one_operator = True  # whether one operator programs and multiplies
    converters_served = False  # whether its forward can have a DAC and an ADC, see nft_ext/nn/converters.py
    converts = False

    @property
    def anchor(self) -> Tensor:
        """A tensor of the layer, to ask for its torch device and type. Reading it computes nothing."""
        weight = self._parameters.get("weight")
        return self.weight if weight is None else weight

    @property
    def weight_count(self) -> int:
        """The number of weights on crossbars."""
        return self.anchor.numel()

    def matrices(self) -> list[Any]:
        """What has a name and a stream of its own: the layer itself, or the matrices of a layer with several."""
        return [self]

    def matrices_by_name(self, name: str) -> dict[str, Any]:
        """`matrices()` by the names that they have in a layer called `name`."""
        return {name: self}

    def settle_name(self, name: str) -> None:
        """Takes the name that a model gave to the layer's matrices."""

    def master_weights(self) -> list[Tensor]:
        """The weights before programming, in the order of `matrices()`."""
        return [self.weight]

    def crossbars(self) -> list[Crossbar]:
        """The operator arguments of all matrices, to program them for later forwards."""
        return [self.crossbar(forward=False)]

    def hold_programmed(self, weights: Sequence[Tensor], scaled: bool = False) -> None:
        """Stores the programmed weights of all matrices, see `set_programmed`."""
        self.set_programmed(weights[0], scaled)

    def attach(self, nvm: NVMDevice, name: str | None = None, stream: int = 0) -> None:
        """Sets the device model, the qualified name in the model and the random stream."""
        if not isinstance(nvm, NVMDevice):
            fail("nvm", "must be an NVMDevice", type(nvm).__name__, TypeError)
        if nvm.has_converters and not self.converters_served:
            refuse_converters(name or type(self).__name__, type(self).__name__)
        self.nvm, self.name, self.stream = nvm, name, stream
        self.noise_enabled = True
        self._last: tuple | None = None
        # A constant of compiled graphs; table and key are their inputs.
        self._spec = nvm.operator_spec()
        self._table = own_table(nvm, self.anchor.device)
        self._key = self._programmed = self._owner = self._entry = None
        self._changes = []

    @property
    def here(self) -> torch.device:
        """The weight's torch device. Every context asks for it, and nn.Module's __getattr__ is slow."""
        return self.anchor.device

    def noise_state(self) -> tuple:
        """The state that a context restores: (table, key, programmed weights, enabled, spec, scaled)."""
        own = self.__dict__
        scaled = own.get("scaled", False)
        return own["_table"], own["_key"], own["_programmed"], own["noise_enabled"], own["_spec"], scaled

    def set_noise_state(self, state: tuple) -> None:
        """Restores a state from `noise_state`."""
        own = self.__dict__  # nn.Module's __setattr__ is slow, and every context comes here
        own["_table"], own["_key"], own["_programmed"], own["noise_enabled"], own["_spec"], own["scaled"] = state

    def set_key(self, key: Tensor) -> None:
        """Sets the chips for later forwards."""
        own = self.__dict__
        own["_key"], own["_programmed"] = key, None

    def set_programmed(self, weights: Tensor, scaled: bool = False) -> None:
        """Stores W_p [S, *weight.shape] of the present key for later forwards; scaled: times `row_scale`."""
        self._programmed, self.scaled = weights, scaled

    def row_scale(self, dtype: torch.dtype) -> Tensor | None:
        """Factors [out] for the rows of weights that are programmed in `dtype` for many batches, or None."""
        return None

    def programmed(self, x: Tensor) -> Tensor | None:
        """The stored weights [S, *weight.shape] for a product with x.

        None without any, where derivatives need the operator, or where they were rounded to another 16-bit type.
        """
        if self._programmed is None or torch.is_grad_enabled() or autograd.is_special():
            return None
        if self._programmed.dtype != torch.float32 and self._programmed.dtype != dtype_in_autocast(x):
            return None
        if not torch.compiler.is_compiling():
            if self._owner is not None:
                self.check_caller()
            recomputation.note_forward(self, True)
        return self._programmed

    def set_device(self, nvm: NVMDevice, table: Tensor | None = None) -> None:
        """Sets the device model for later forwards (sigma sweeps), and its table if given. Noise stays on or off."""
        table = own_table(nvm, self.anchor.device) if table is None else table
        self.__dict__.update(_programmed=None, _table=table, _spec=nvm.operator_spec(self.noise_enabled))

    def set_enabled(self, enabled: bool) -> None:
        """Turns the noise on or off for later forwards."""
        self.noise_enabled, self._programmed = enabled, None
        path = self.nvm.operator_spec(enabled)[2]
        self._spec = [*self._spec[:2], path, *self._spec[3:]]

    def crossbar(self, compiling: bool | None = None, forward: bool = True) -> Crossbar:
        """The operator arguments of this layer for one forward.

        Args:
            compiling: torch.compiler.is_compiling(), if the caller knows it.
            forward: False to program the weights for later forwards.

        Raises:
            RuntimeError: a forward in another thread than that of the layer's contexts, or past the model on several
                chips.
        """
        # Read the dictionary: nn.Module's __getattr__ is slow, and every forward comes here.
        master: Tensor | None = self._parameters.get("weight")
        if master is None:
            master = self.weight  # of a parametrization
        if compiling is None:
            compiling = torch.compiler.is_compiling()
        weight = master
        table, key, spec = self.noise_for(weight, compiling, forward)
        shared = self.shares_codes and weight.dtype != torch.float64 and not autograd.is_special()
        codes, step = self.codes_and_step(weight) if shared else (None, None)
        return Crossbar(weight, codes, step, table, key, self.stream, spec)

    def noise_for(self, weight: Tensor, compiling: bool, forward: bool = True) -> tuple[Tensor, Tensor, list[int]]:
        """(table, key, spec) for one forward with `weight`; see `crossbar`."""
        table, key, spec = self._table, self._key, self._spec
        # After the reads: a context of another thread sets its owner first.
        if not compiling and self._owner is not None:
            self.check_caller(forward)
            table, key = self._table, self._key
        if not compiling and not is_ordinary(weight):
            check_tensor(f"{self.name or type(self).__name__}.weight", weight)
        if not compiling and forward:
            self._note_forward()
            if self.unquantized and self._programmed is not None:
                refuse_quantized(self.name or type(self).__name__)
        if key is None:
            key = fresh_key(weight)
        here = weight.device
        if (key.device != here or table.device != here) and here.type != "meta":
            # The weight came after the context began, as under accelerate's offloading.
            if key.is_meta:
                fail(
                    f"{self.name or type(self).__name__}.weight",
                    "must be on the meta device too for a key on it. Give nft_ext.chips seed and draws instead",
                    here,
                    RuntimeError,
                )
            table, key = table.to(here), key.to(here)
        return table, key, spec

    def check_caller(self, forward: bool = True) -> None:
        """Checks that this thread is in the layer's contexts, and that several chips came in through their model.

        Raises:
            RuntimeError: it is not, or they did not.
        """
        self.check_thread()
        if self._entry is not None and not self._entry.calls and forward:
            self._entry.refuse_outside(self)

    def check_thread(self) -> None:
        """Checks that this thread is in the layer's contexts, if any is.

        Raises:
            RuntimeError: it is not.
        """
        if self._owner is None or self._owner == threading.get_ident():
            return
        if self._owner == ANYWHERE:
            self.follow_weight()  # a replica's weight is on another torch device
        elif torch._C._current_graph_task_id() == -1:  # autograd recomputes in threads of its own
            refuse_thread(self.name or type(self).__name__)

    def follow_weight(self) -> None:
        """Moves the noise state to the weight's torch device, and the states that open contexts restore."""
        device = self.here
        if self._table.device == device or device.type == "meta":
            return

        def moved(value: Any) -> Any:
            if isinstance(value, tuple):  # programmed weights of several matrices
                return tuple(map(moved, value))
            return value.to(device) if isinstance(value, Tensor) else value

        self.set_noise_state(moved(self.noise_state()))
        for change in self._changes:
            state, *others = change.before
            change.before = (moved(state), *others)

    def _note_forward(self) -> None:
        """For activation checkpointing: notes the state, and refuses a recomputation with another one."""
        own = self.__dict__
        state = own["_key"], own["_table"], own["noise_enabled"]
        in_context = state[0] is not None or own["_owner"] is not None
        if recomputation.may_matter(self.training or in_context):
            if recomputation.is_unknown():
                last = self._last or (None, None, None)
                other = any(a is not b for a, b in zip(state, last))
                if in_context if recomputation.is_followed() else other:
                    recomputation.refuse_unknown(self)
            recomputation.note_forward(self, self.training or in_context)
        own["_last"] = state

    def codes_and_step(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The quantized weight and its step for one forward and its backward."""
        with torch.no_grad():
            scaling = self._spec[4:]
            step = operators.ops.weight_step(weight, self.nvm.weight_bits, scaling)
            return operators.ops.quantize(weight, step, self.nvm.weight_bits, scaling), step

    def share_codes(self, shared: bool) -> None:
        """Sets whether later forwards hand their quantized weights to their backwards."""
        self.shares_codes = shared

    def _apply(self, fn, recurse=True):
        """Moves table and key with the weight, but keeps their types: a float16 table would change the noise.

        A row-major weight stays row-major in .to(memory_format=...), because noise is counted in that order.
        """
        self._programmed = None
        row_major = [name for name, p in self._parameters.items() if p is not None and p.is_contiguous()]
        super()._apply(fn, recurse)
        for name in row_major:
            if (weight := self._parameters[name]) is not None and not weight.is_contiguous():
                weight.data = weight.data.contiguous()
        self.follow_weight()
        return self

    def _replicate_for_data_parallel(self):
        replica = super()._replicate_for_data_parallel()
        replica._owner, replica._changes = ANYWHERE, []
        return replica

    def __getstate__(self) -> dict:
        # A copy made inside a context keeps the chips, but drops what was computed from the weights.
        owner = None if self._entry is None else ANYWHERE
        dropped = {"shares_codes": False, "_programmed": None, "_last": None, "_changes": [], "_owner": owner}
        return {**super().__getstate__(), **dropped}

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        own = self.__dict__
        own.pop("_quantized", None)
        for name in _STATE:  # version 0.2 had them as buffers
            if name in self._buffers:
                own[name] = self._buffers.pop(name)
                self._non_persistent_buffers_set.discard(name)
        for name, value in (("_last", None), ("_changes", []), ("_owner", None), ("_entry", None)):
            own.setdefault(name, value)
        if len(own["_spec"]) == 4:  # of version 0.2, whose layers have one step each
            own["_spec"] = [*own["_spec"], *self.nvm.operator_scaling()]

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, nvm=({self.nvm})"


def changed_weights(programmed: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The programmed weights of a layer's state, None or one or several tensors, each through `change`."""
    if programmed is None or isinstance(programmed, Tensor):
        return None if programmed is None else change(programmed)
    return tuple(map(change, programmed))


def refuse_converters(argument: str, kind: str) -> NoReturn:
    """Refuses converters around a product that is not this package's own.

    Raises:
        ValueError: always.
    """
    rule = "must be a Linear or Conv2d itself for input_bits or output_bits. Exclude it, or leave the converters out"
    fail(argument, rule, kind)


def refuse_thread(argument: str) -> NoReturn:
    """Refuses a forward in another thread than that of the noise contexts.

    Raises:
        RuntimeError: always.
    """
    rule = "must not run in one thread while another is in its noise contexts. Use one copy of the model per thread"
    fail(argument, rule, "a forward in another thread", RuntimeError)


def refuse_quantized(argument: str) -> NoReturn:
    """Refuses a forward that would quantize the weight of a layer whose quantizer is off.

    Raises:
        RuntimeError: always.
    """
    rule = "must run without gradients, on inputs of autocast's type, while its quantizer is off"
    fail(argument, rule, "a forward on the quantized weight", RuntimeError)


def noisy_layers(model: nn.Module) -> dict[str, NoisyLayer]:
    """The model's noisy layers by qualified name, each once.

    Known wrappers (DataParallel, DistributedDataParallel, FullyShardedDataParallel, compiled modules, AveragedModel)
    are no part of a name. A layer built by hand gets its name and stream here. So does a layer whose stream another
    layer has: that happens in models that were converted separately and then joined.

    Raises:
        ValueError: such a layer was used before, under another name in another model.
    """
    chosen = select(model, lambda module: isinstance(module, NoisyLayer))
    found = {name: cast("NoisyLayer", layer) for name, (_, layer) in chosen.items()}
    name_layers({part: m for name, layer in found.items() for part, m in layer.matrices_by_name(name).items()})
    for name, layer in found.items():
        layer.settle_name(name)
    return found


def noisy_layers_by_path(model: nn.Module) -> dict[str, NoisyLayer]:
    """`noisy_layers(model)` by torch's names, which include wrappers. Files of version 0.2 have these."""
    noisy_layers(model)
    return {path: module for _, path, module in named(model) if isinstance(module, NoisyLayer)}


def matrices_by_path(model: nn.Module) -> dict[str, Any]:
    """What has a stream, a layer or one of its matrices, by torch's names."""
    layers = noisy_layers_by_path(model).items()
    return {name: matrix for path, layer in layers for name, matrix in layer.matrices_by_name(path).items()}


def check_noisy(model: nn.Module) -> dict[str, NoisyLayer]:
    """`noisy_layers(model)`, at least one.

    Raises:
        TypeError: not a module.
        ValueError: no noisy layers.
    """
    layers = noisy_layers(module("model", model))
    if not layers:
        fail("model", "must hold noisy layers; make them with nft_ext.convert(model, nvm)", type(model).__name__)
    return layers


def as_kind(kind: type[_Kind], layer: nn.Module) -> _Kind:
    """`layer` as a new object of class `kind`, with the same parameters, buffers, hooks and settings.

    No constructor runs. Buffers added to the new object are not added to `layer`.
    """
    found = object.__new__(kind)
    found.__dict__ = dict(layer.__dict__)
    found.__dict__.pop("_met_as", None)  # it may get another place, and keeps its name there
    found._buffers = dict(layer._buffers)
    found._non_persistent_buffers_set = set(layer._non_persistent_buffers_set)
    return found
