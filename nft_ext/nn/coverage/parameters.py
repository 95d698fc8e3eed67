"""Every parameter of two or more dimensions, the modules that hold it, and what rules say about it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize

from nft_ext._common.checks import fail
from nft_ext.nn.base import NoisyLayer
from nft_ext.nn.candidates import convertible
from nft_ext.nn.crossbars import matrices, only_on_request
from nft_ext.nn.names import named
from nft_ext.nn.noise_free import is_quantized, multiplies, unregistered_modules
from nft_ext.nn.replaced import replaced_method

MATRIX, EMBEDDING, TABLE, NORM, SCALE, BIAS = (
    "matrix",
    "embedding",
    "position table or token",
    "norm",
    "per-channel scale or token",
    "bias",
)
_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_NORM_NAME = re.compile(r"norm(act)?(1d|2d|3d|\d)?(act)?$", re.IGNORECASE)
_TABLE_NAME = re.compile(r"(^|_)(pos|position|token|tokens|query|queries|embed|embedding|embeddings|latents?)(_|$|\d)")
# Endings of parameters from which torch.nn.utils makes a weight, and those of parametrizations.
_MAKES = {"_orig": "pruned or spectral-normed", "_g": "weight-normed", "_v": "weight-normed"}
_PARAMETRIZATION = re.compile(r"parametrizations\.(\w+)\.")


@dataclass
class Held:
    """A parameter, or the weight of a quantized layer.

    Attributes:
        parameter: None for a weight that is no parameter.
        shape: its shape; empty if unknown.
        places: (module's name, parameter's name in the module, module), the most telling one first.
        role: MATRIX if it multiplies activations, by rule; else what it is.
        certain: whether the class of the module says so, and not only shape and name.
        remade: how torch makes the layer's weight from this parameter; None for the weight itself.
        obstacle: why the module cannot become noisy as it is; None if nothing is known.
    """

    parameter: Tensor | None
    shape: tuple[int, ...]
    places: list[tuple[str, str, nn.Module]] = field(default_factory=list)
    role: str = MATRIX
    certain: bool = False
    remade: str | None = None
    obstacle: str | None = None

    @property
    def name(self) -> str:
        """The qualified name."""
        prefix, key, _ = self.places[0]
        return ".".join(part for part in (prefix, key) if part) or type(self.places[0][2]).__name__

    @property
    def module(self) -> nn.Module:
        """The module that is asked first."""
        return self.places[0][2]

    @property
    def kind(self) -> str:
        """The class of the module, with its package where torch.nn has another class of that name."""
        kind = type(self.module)
        if isinstance(self.module, torch.jit.ScriptModule):
            return self.module.original_name
        other = getattr(nn, kind.__name__, kind) is not kind
        return f"{kind.__module__}.{kind.__name__}" if other else kind.__name__

    @property
    def convertible(self) -> bool:
        """Whether the module's class is one that `convert` knows."""
        return _is_convertible(*self.places[0][1:])

    @property
    def noisy(self) -> bool:
        """Whether the module has noise, and puts the parameter on a crossbar."""
        return _has_noise(*self.places[0][1:])

    @property
    def cells(self) -> int:
        """Number of weights."""
        return math.prod(self.shape) if self.shape else 0


def crossbars_of(module: nn.Module) -> dict[str, tuple[str, int]]:
    """Parameters of a module, plain or noisy, that `convert` puts on crossbars: name -> (layout, groups).

    Layers that are converted on request only have none while they are plain.
    """
    if isinstance(module, NoisyLayer):
        found = matrices(module)
    else:
        found = [] if only_on_request(module) else convertible(module)
    return {m.parameter: (m.layout, m.groups) for m in found}


def weight_of(key: str, module: nn.Module) -> tuple[str, str | None]:
    """The weight that a parameter of the module is or makes, and how torch makes it; None for the weight itself."""
    if (found := _PARAMETRIZATION.match(key)) is not None:
        return found[1], "parametrized"
    for ending, how in _MAKES.items():
        name = key.removesuffix(ending)
        if name != key and name not in module._parameters and isinstance(getattr(module, name, None), Tensor):
            return name, how
    return key, None


def held_by(model: nn.Module) -> list[Held]:
    """Parameters of two or more dimensions, each once, in the order of the modules. Quantized weights follow theirs.

    Raises:
        ValueError: a lazy parameter has no shape yet.
    """
    found: dict[int, Held] = {}
    for prefix, module, hidden in _modules(model):
        if is_quantized(module):
            found[id(module)] = _quantized(prefix, module)
            continue
        if isinstance(module, parametrize.ParametrizationList):
            continue  # its tensors are listed with the layer whose weight they make
        own = list(module.named_parameters(recurse=False, remove_duplicate=False))
        own += _parametrized(module)
        own += [(key, module.get_parameter(key)) for key in crossbars_of(module) if "." in key]  # of a child
        for key, p in own:
            if isinstance(p, UninitializedParameter):
                rule = "must have its shape: run the model once, so that lazy layers get theirs"
                fail(prefix or "model", rule, type(module).__name__)
            if p.dim() < 2:
                continue
            held = found.setdefault(id(p), Held(p, tuple(p.shape)))
            held.places.append((prefix, key, module))
            if hidden and len(held.places) == 1:
                held.obstacle = "in a plain list, tuple or dict"
    for held in found.values():
        if held.parameter is not None:
            _judge(held)
    return list(found.values())


def _modules(model: nn.Module) -> Iterator[tuple[str, nn.Module, bool]]:
    """(name, module, whether it is in a plain list)."""
    for name, _, module in named(model):
        yield name, module, False
    seen: set[int] = set()
    for name, hidden in unregistered_modules(model):
        for number, top in enumerate(hidden):
            outer = name if len(hidden) == 1 else f"{name}.{number}"
            for inner, module in top.named_modules():
                if id(module) not in seen:
                    seen.add(id(module))
                    yield f"{outer}.{inner}" if inner else outer, module, True


def _parametrized(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    lists = getattr(module, "parametrizations", None) if parametrize.is_parametrized(module) else None
    if not isinstance(lists, nn.ModuleDict):
        return []
    return [
        (f"parametrizations.{name}.{key}", p)
        for name, made in lists.items()
        for key, p in made.named_parameters(recurse=False)
    ]


def _quantized(name: str, module: nn.Module) -> Held:
    weight = getattr(module, "weight", None)
    weight = weight() if callable(weight) and not isinstance(weight, Tensor) else weight
    shape = tuple(weight.shape) if isinstance(weight, Tensor) else ()
    return Held(None, shape, [(name, "", module)], certain=True, obstacle="quantized")


def _judge(held: Held) -> None:
    """Sets role and obstacle by rules, and puts the most telling place first."""
    verdicts = [(place, *_role(place[2], place[1], held.shape)) for place in held.places]

    def rank(verdict: tuple) -> tuple:
        (_, key, module), role, certain = verdict
        return not _has_noise(key, module), not _is_convertible(key, module), role != MATRIX, not certain

    verdicts.sort(key=rank)
    held.places = [place for place, _, _ in verdicts]
    (_, key, module), held.role, held.certain = verdicts[0]
    held.remade = weight_of(key, module)[1]
    if held.obstacle is None and not held.noisy:
        held.obstacle = _obstacle(held) if held.convertible else held.remade or _obstacle(held)
    if held.obstacle is None and held.convertible:
        for (name, other, m), role, _ in verdicts[1:]:
            same = f"{name}.{other}" == held.name  # a child whose weight the module reads
            alike = _has_noise(other, m) if held.noisy else _is_convertible(other, m)
            if role == MATRIX and not alike and not same:
                held.obstacle = f"shared with {name or 'the model'} ({type(m).__name__}), which has no noise"
                break


def _is_convertible(key: str, module: nn.Module) -> bool:
    return weight_of(key, module)[0] in crossbars_of(module)


def _has_noise(key: str, module: nn.Module) -> bool:
    return isinstance(module, NoisyLayer) and _is_convertible(key, module)


def _obstacle(held: Held) -> str | None:
    """Why a module cannot become noisy as it is; None if nothing is known."""
    if isinstance(held.module, torch.jit.ScriptModule):
        return "scripted"
    if held.convertible and replaced_method(held.module) is not None:
        return "its forward was replaced on the instance"
    return None


def _role(module: nn.Module, key: str, shape: tuple[int, ...]) -> tuple[str, bool]:
    """What a parameter is, and whether the class says so."""
    kind = type(module).__name__
    weight, remade = weight_of(key, module)
    if remade is not None and sum(n > 1 for n in shape) < 2:
        return SCALE, True
    if weight in crossbars_of(module):
        return MATRIX, True
    if multiplies(module):
        return (MATRIX, True) if "weight" in key else (BIAS, True)
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return EMBEDDING, True
    if isinstance(module, _NORMS) or _NORM_NAME.search(kind):
        return NORM, True
    if "bias" in key.lower():
        return BIAS, False
    if _TABLE_NAME.search(key.lower()):
        return TABLE, False
    if sum(n > 1 for n in shape) < 2 or (shape[0] == 1 and len(shape) <= 4):
        return SCALE, False
    if "embedding" in kind.lower() and "weight" in key:
        return EMBEDDING, False
    return MATRIX, False
