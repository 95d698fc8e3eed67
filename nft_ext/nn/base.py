"""What every noisy layer carries: its device, its stream, and the noise that is in force."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from nft_ext._common.checks import fail, module
from nft_ext.device import NVMDevice
from nft_ext.ops import operators
from nft_ext.ops.functional import Crossbar, device_table
from nft_ext.ops.keys import fresh_key, stream_of
from nft_ext.ops.operands import check_tensor, is_ordinary

_optimizer_steps = 0


def _count_step(*_: object) -> None:
    global _optimizer_steps
    _optimizer_steps += 1


register_optimizer_step_post_hook(_count_step)  # fused optimizers change weights without moving their version


class NoisyLayer(nn.Module):
    """Mixin before nn.Linear or nn.Conv2d. Noise is on unless a context (nft_ext.noise) switches it off; train() and
    eval() do not touch it. Outside nft_ext.chips every forward is a fresh chip whose seed comes from torch's generator.

    Key and table are non-persistent buffers: contexts swap them, so one compiled graph serves all keys and sigmas, and
    the state_dict stays that of the plain layer.
    """

    scaled = False  # whether what stands programmed has its rows multiplied by row_scale
    shares_codes = False  # whether forwards with gradients quantize the weight once for all

    def attach(self, nvm: NVMDevice, name: str | None = None, stream: int = 0) -> None:
        """Give the layer its device, its qualified name in the model and its random stream."""
        if not isinstance(nvm, NVMDevice):
            fail("nvm", "must be an NVMDevice", type(nvm).__name__, TypeError)
        self.nvm, self.name, self.stream = nvm, name, stream
        self.noise_enabled = True
        self._quantized: tuple | None = None
        # Plain copies of what is static in a graph; the tensors of a compiled graph are the buffers.
        self._spec = nvm.operator_spec()
        self.register_buffer("_table", device_table(nvm, self.weight.device), persistent=False)
        self.register_buffer("_key", None, persistent=False)
        self.register_buffer("_programmed", None, persistent=False)

    def noise_state(self) -> tuple:
        """What a context saves and puts back: (table, key, programmed weights, enabled, spec, scaled)."""
        return self._table, self._key, self._programmed, self.noise_enabled, self._spec, self.scaled

    def set_noise_state(self, state: tuple) -> None:
        self._table, self._key, self._programmed, self.noise_enabled, self._spec, self.scaled = state

    def set_key(self, key: Tensor) -> None:
        """Other chips from here on."""
        self._key, self._programmed = key, None

    def set_programmed(self, weights: Tensor, scaled: bool = False) -> None:
        """What `programmed` gives from here on: W_p [S, *weight.shape] of the key in force; scaled: times `row_scale`."""
        self._programmed, self.scaled = weights, scaled

    def row_scale(self, dtype: torch.dtype) -> Tensor | None:
        """Numbers [out] that the layer wants its rows multiplied by where they are programmed in `dtype` for many
        batches.
        """
        return None

    def programmed(self) -> Tensor | None:
        """Weights [S, *weight.shape] that stand programmed, or None where the operator shall program them: also
        wherever a gradient may be asked for, which needs the operator.
        """
        return None if torch.is_grad_enabled() else self._buffers["_programmed"]

    def set_device(self, nvm: NVMDevice) -> None:
        """Another device model from here on (sigma sweeps); the noise's on/off state stays."""
        self._programmed = None
        self._table = device_table(nvm, self.weight.device)
        self._spec = nvm.operator_spec(self.noise_enabled)

    def set_enabled(self, enabled: bool) -> None:
        self.noise_enabled, self._programmed = enabled, None
        path = self.nvm.operator_spec(enabled)[2]
        self._spec = [*self._spec[:2], path, self._spec[3]]

    def crossbar(self, compiling: bool | None = None) -> Crossbar:
        """The operator arguments of this layer for one forward; `compiling`: torch's word on that, where it has been
        asked for.
        """
        # Straight from the dictionaries: nn.Module's __getattr__ comes after a failed search, and this is on the path
        # of every call.
        buffers, weight = self._buffers, self._parameters.get("weight")
        if weight is None:
            weight = self.weight  # a parametrization's
        master, key = weight, buffers["_key"]
        if compiling is None:
            compiling = torch.compiler.is_compiling()
        if not compiling and not is_ordinary(weight):
            check_tensor(f"{self.name or type(self).__name__}.weight", weight)
        if weight.dtype != torch.float32:
            weight = weight.float()
        if key is None:
            key = fresh_key(weight)
        codes, step = (None, None) if compiling or weight is not master else self._codes_and_step(weight)
        return Crossbar(weight, codes, step, buffers["_table"], key, self.stream, self._spec)

    def _codes_and_step(self, weight: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """The quantized weight, kept while the weight stays unchanged; nothing in training, where the operator finds
        the step, except within a context that says that forwards share it (nft_ext.nn.contexts.shared_codes).

        "Unchanged" is the same parameter at the same address, torch's version counter, and no optimizer's step. Writing
        through `.data` moves none of them, hence the cache is also dropped by train(), eval(), to(), load_state_dict
        and at the entry of the outermost context.
        """
        bits = self.nvm.weight_bits
        if weight.is_inference() or (torch.is_grad_enabled() and not self.shares_codes):
            return None, None
        stamp = (id(weight), weight.data_ptr(), weight._version, _optimizer_steps, bits, weight.device)
        if self._quantized is None or self._quantized[0] != stamp:
            with torch.no_grad():
                step = operators.ops.weight_step(weight, bits)
                codes = operators.ops.quantize(weight, step, bits)
            # Holding the weight and its memory keeps another from taking their identity and address.
            self._quantized = (stamp, codes, step, weight, weight.detach())
        return self._quantized[1:3]

    def share_codes(self, shared: bool) -> None:
        """Whether forwards with gradients use one quantized weight from here on; what was kept before is not it."""
        self.shares_codes = shared
        self.forget_codes()

    def forget_codes(self) -> None:
        """Drop the cached codes (after writing to weight.data by hand)."""
        self._quantized = None

    def train(self, mode: bool = True):
        self.forget_codes()
        return super().train(mode)

    def _load_from_state_dict(self, *args, **kwargs):
        self.forget_codes()
        return super()._load_from_state_dict(*args, **kwargs)

    def _apply(self, fn, recurse=True):
        """Move with the weight but keep their own types: a float16 table or key would be another device. A row-major
        weight stays so in .to(memory_format=...), as its noise is counted; else every forward would copy it.
        """
        self.forget_codes()
        table, key = self._table, self._key
        self._table = self._key = self._programmed = None
        row_major = self.weight.is_contiguous()
        super()._apply(fn, recurse)
        if row_major and not self.weight.is_contiguous() and (weight := self._parameters.get("weight")) is not None:
            weight.data = weight.data.contiguous()
        device = self.weight.device
        self._table = table.to(device) if device.type != "meta" else table
        self._key = key.to(device) if key is not None and device.type != "meta" else key
        return self

    def __getstate__(self) -> dict:
        # A copy made inside a context keeps its chips, but not what is made from today's weights.
        return {**self.__dict__, "_quantized": None, "_buffers": {**self._buffers, "_programmed": None}}

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, nvm=({self.nvm})"


def noisy_layers(model: nn.Module) -> dict[str, NoisyLayer]:
    """The model's noisy layers by qualified name, each once. Layers built by hand get their name and stream here; so
    does one whose stream an earlier layer has too (models that were converted apart and then joined).
    """
    found = {name: layer for name, layer in model.named_modules() if isinstance(layer, NoisyLayer)}
    first = {layer.stream: layer for layer in reversed(found.values()) if layer.name is not None}
    taken = set(first)
    for name, layer in found.items():
        if first.get(layer.stream) is not layer:
            layer.name, layer.stream = name, stream_of(name, taken)
            taken.add(layer.stream)
    return found


def check_noisy(model: nn.Module) -> dict[str, NoisyLayer]:
    """`noisy_layers(model)`, of which there is at least one.

    Raises:
        TypeError: not a module. ValueError: no noisy layers.
    """
    layers = noisy_layers(module("model", model))
    if not layers:
        fail("model", "must hold noisy layers; make them with nft_ext.convert(model, nvm)", type(model).__name__)
    return layers


def as_kind(kind: type[nn.Module], layer: nn.Module) -> nn.Module:
    """`layer` as one of `kind`: a new object with the same parameters, buffers, hooks and settings; no constructor runs.

    Buffers that are added to it are not added to `layer`.
    """
    found = object.__new__(kind)
    found.__dict__ = dict(layer.__dict__)
    found._buffers = dict(layer._buffers)
    found._non_persistent_buffers_set = set(layer._non_persistent_buffers_set)
    return found
