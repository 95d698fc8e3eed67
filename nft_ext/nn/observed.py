"""What a forward really runs: noisy layers that never run, weights that are read past their layer.

The evidence is the noisy forward itself. Inside `observed`, each noisy layer notes that its own forward began. A hook
would not do: a forward that was replaced on the instance may bypass the noise, or may end in the noisy forward.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nft_ext._common.checks import fail
from nft_ext.nn.base import NoisyLayer, noisy_layers
from nft_ext.nn.candidates import matrix_parameters, parameter_of, read_by_parents
from nft_ext.nn.effective import part_names
from nft_ext.nn.names import named
from nft_ext.nn.noise_free import noise_free_layers
from nft_ext.nn.replaced import replaced_method

_PRODUCTS = {
    *("linear", "bilinear", "matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "mv", "dot", "inner", "einsum"),
    *("tensordot", "addmm", "addmv", "addbmm", "baddbmm", "chain_matmul", "multi_dot", "grouped_mm", "_grouped_mm"),
    *("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "embedding"),
    *("lstm", "gru", "rnn_tanh", "rnn_relu", "multi_head_attention_forward", "_native_multi_head_attention"),
    "_transformer_encoder_layer_fwd",
}
_SHOWN = 6  # names in a text


@dataclass(frozen=True)
class Observation:
    """What one forward showed.

    Attributes:
        never_ran: names of noisy layers whose forward did not run, and of matrices that their layer's forward did not
            read.
        share: their part of the weights of all noisy layers, 0 .. 1.
        read: names of noisy layers whose weight a product outside of the layer read, without noise.
        matrices: names of other parameters that a product read, in modules that are no torch layers.
    """

    never_ran: list[str]
    share: float
    read: list[str]
    matrices: list[str]

    def texts(self, where: str) -> list[str]:
        """One text per kind of finding; none if all noisy layers ran. The coverage names `matrices`.

        Args:
            where: names the forward, as "in the first step".
        """
        texts = []
        if self.never_ran:
            texts.append(
                f"these noisy layers did not run {where}, so their noise had no effect ({100 * self.share:.3g} % of "
                f"the noisy weights): {_listed(self.never_ran)}"
            )
        if self.read:
            texts.append(f"the weights of these noisy layers are read without noise: {_listed(self.read)}")
        return texts


@dataclass
class Observer:
    """Collects while `observed` is open."""

    layers: dict[str, NoisyLayer]
    ran: set[Any] = field(default_factory=set)  # layers with one operator, and matrices of the others
    read: set[str] = field(default_factory=set)
    matrices: list[str] = field(default_factory=list)

    def found(self) -> Observation:
        """What has been observed so far."""
        sizes: dict[str, int] = {}
        never: list[str] = []
        for name, layer in self.layers.items():
            parts = layer.matrices_by_name(name)
            unread = [part for part, matrix in parts.items() if matrix not in self.ran]
            sizes.update({part: weights_of(layer, matrix) for part, matrix in parts.items()})
            never += unread
        share = sum(sizes[name] for name in never) / max(1, sum(sizes.values()))
        whole = [name for name, layer in self.layers.items() if set(layer.matrices_by_name(name)) <= set(never)]
        inside = {part for name in whole for part in self.layers[name].matrices_by_name(name)}
        never = [*whole, *(part for part in never if part not in inside)]
        return Observation(never, share, [name for name in self.layers if name in self.read], self.matrices)


@contextlib.contextmanager
def observed(model: nn.Module) -> Iterator[Observer]:
    """Observes the forwards inside, layer by layer and without compiled graphs. Nothing stays behind.

    Raises:
        ValueError: at a forward: a layer was called, but its own forward did not run.
    """
    observer = Observer(noisy_layers(model))
    # Only where something may be compiled: importing torch._dynamo takes seconds.
    compiled = "torch._dynamo" in sys.modules
    with contextlib.ExitStack() as stack:
        for name, layer in observer.layers.items():
            stack.enter_context(_checked(name, layer, observer.ran))
        if compiled:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        products = stack.enter_context(_Products(model, observer))
        # Only reads by the model's own forward count: a loss may read weights too, as a regularizer does.
        stack.callback(model.register_forward_pre_hook(products.enter).remove)
        stack.callback(model.register_forward_hook(products.leave, always_call=True).remove)
        yield observer


@contextlib.contextmanager
def own_forwards(layers: list[NoisyLayer]) -> Iterator[None]:
    """Checks in every call that a forward replaced on an instance runs the noisy forward in the end.

    Raises:
        ValueError: at a forward: it did not.
    """
    replaced = [layer for layer in layers if replaced_method(layer) is not None]
    with contextlib.ExitStack() as stack:
        for layer in replaced:
            stack.enter_context(_checked(layer.name or "", layer, set()))
        yield


@contextlib.contextmanager
def _checked(name: str, layer: NoisyLayer, ran: set[Any]) -> Iterator[None]:
    """Adds the layer to `ran` when its own forward runs. Refuses calls in which it does not."""
    calls: list[bool] = []  # per call in progress, whether the forward ran

    def begin(*_: Any) -> None:
        calls.append(False)

    def end(*_: Any) -> None:
        if calls and not calls.pop():
            method = replaced_method(layer)
            rule = "must end in the forward of NoisyLinear or NoisyConv2d, but this one bypasses the noise"
            if method is not None:
                rule += f": it was put on the instance, so remove it (del layer.{method}), or convert the model again"
            fail(f"{name or type(layer).__name__}.{method or 'forward'}", rule, type(layer).__name__)

    def note(method: Any, counts: bool, *args: Any, **kwargs: Any) -> Any:
        if (counts or calls) and layer.one_operator:
            ran.add(layer)
        calls[-1:] = [True] if calls else []
        return method(*args, **kwargs)

    def note_reads(attributes: set[str]) -> None:
        ran.update(m for m in layer.matrices() if parameter_of(m).partition(".")[0] in attributes)

    own = layer.__dict__
    before = {method: own[method] for method in (*layer.begins, "note_reads") if method in own}
    methods = {method: getattr(layer, method) for method in layer.begins if hasattr(layer, method)}
    hooks = [layer.register_forward_pre_hook(begin), layer.register_forward_hook(end)]
    # Programming ahead of the forwards asks for the crossbar, too.
    own.update({name: functools.partial(note, bound, name != "crossbar") for name, bound in methods.items()})
    if not layer.one_operator:
        own["note_reads"] = note_reads
    try:
        yield
    finally:
        for method in (*methods, "note_reads"):
            own.pop(method, None)
        own.update(before)
        for hook in hooks:
            hook.remove()


class _Products(TorchFunctionMode):
    """Notes products in the model's forward that read a parameter of two or more dimensions directly."""

    def __init__(self, model: nn.Module, observer: Observer) -> None:
        super().__init__()
        self.observer = observer
        self.depth = 0  # calls of the model in progress
        weights = {}
        for name, layer in observer.layers.items():
            for weight in matrix_parameters(layer):
                weights[id(weight)] = name, True, weight
        inner = read_by_parents(model)
        # Modules that share a noisy layer's weight are named without an observation.
        self.shared = {
            weights[id(p)][0]
            for _, _, m in named(model)
            if not isinstance(m, NoisyLayer) and m not in inner
            for p in m._parameters.values()
            if id(p) in weights
        }
        named_elsewhere = {id(p) for m in noise_free_layers(model).values() for p in m.parameters()}
        for prefix, _, module in named(model):
            if "parametrizations" in prefix.split("."):
                continue  # products there make a weight
            made = (
                {part for m in module.matrices() for part in part_names(parameter_of(m))}
                if isinstance(module, NoisyLayer)
                else set()
            )
            for key, p in module._parameters.items():
                if p is not None and id(p) not in named_elsewhere and key not in made:
                    weights.setdefault(id(p), (f"{prefix}.{key}" if prefix else key, False, p))
        # (first byte, end, name, whether of a noisy layer)
        self.spans = [
            (p.data_ptr(), p.data_ptr() + p.nbytes, name, noisy)
            for name, noisy, p in weights.values()
            if _has_address(p) and p.dim() >= 2 and p.numel()
        ]

    def enter(self, *_: Any) -> None:
        """A forward of the model begins."""
        self.depth += 1

    def leave(self, *_: Any) -> None:
        """A forward of the model ends."""
        self.depth -= 1

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if self.depth and name in _PRODUCTS and not torch._C._are_functorch_transforms_active():
            # The first operand of a layer is its input.
            operands = args[1:] if name.startswith(("linear", "bilinear", "conv", "embedding")) else args
            for value in (*operands, *kwargs.values()):
                for item in value if isinstance(value, (list, tuple)) else (value,):
                    if _has_address(item):
                        self._note(item, name)
        return func(*args, **kwargs)

    def _note(self, tensor: Tensor, product: str) -> None:
        address = tensor.data_ptr()
        for first, end, name, noisy in self.spans:
            if first <= address < end:
                if noisy:
                    if product != "embedding" or name not in self.shared:
                        self.observer.read.add(name)
                elif product != "embedding" and name not in self.observer.matrices:
                    self.observer.matrices.append(name)


def weights_of(layer: NoisyLayer, matrix: Any) -> int:
    """The number of weights of one matrix of a layer."""
    return layer.weight_count if matrix is layer else torch.Size(matrix.shape).numel()


def _has_address(value: Any) -> bool:
    """Whether `value` is a tensor of plain memory."""
    return (
        type(value) in (Tensor, nn.Parameter)
        and value.layout is torch.strided
        and not (value.is_meta or value.is_nested)
    )


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
