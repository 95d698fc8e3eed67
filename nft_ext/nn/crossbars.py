"""Which parameters of a module are matrices that can sit on crossbars, and how each one is stored.

The layout names the dimensions of the stored weight: o outputs, i inputs, e experts (one matrix each). A kernel's
dimensions belong to the inputs. In "io" with groups, the inputs of one group follow each other, as torch stores a
transposed convolution [in, out / groups, kernel].
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from torch import nn

from nft_ext._common.checks import fail, one_of

LAYOUTS = ("oi", "io", "eoi", "eio")


class Matrix(NamedTuple):
    """A weight that can sit on a crossbar; with experts, on one per expert."""

    parameter: str  # its name in the module, "weight" for example; "out_proj.weight" of a child
    layout: str  # one of LAYOUTS
    groups: int = 1  # of a convolution


_ON_REQUEST = (nn.Embedding, nn.EmbeddingBag)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_TORCH: dict[type[nn.Module], tuple[Matrix, ...]] = {
    **dict.fromkeys((nn.Linear, nn.Bilinear), (Matrix("weight", "oi"),)),
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), (Matrix("weight", "oi"),)),
    **dict.fromkeys((*_TRANSPOSED, *_ON_REQUEST), (Matrix("weight", "io"),)),
    nn.RNNCellBase: (Matrix("weight_ih", "oi"), Matrix("weight_hh", "oi")),
    nn.MultiheadAttention: tuple(
        Matrix(f"{which}weight", "oi")
        for which in ("in_proj_", "q_proj_", "k_proj_", "v_proj_", "out_proj.")  # attention reads out_proj's weight
    ),
}
# Attentions whose forward reads the weights of their Linears, some of them only with a bias of their own.
_READS_LINEARS = (Matrix("qkv.weight", "oi"), Matrix("proj.weight", "oi"))
# Of other packages, by the module and the name of the class: importing them is slow.
_OTHERS: dict[tuple[str, str], tuple[Matrix, ...]] = {
    ("transformers.pytorch_utils", "Conv1D"): (Matrix("weight", "io"),),
    ("torch_geometric.nn.dense.linear", "Linear"): (Matrix("weight", "oi"),),
    ("torch_geometric.nn.dense.linear", "HeteroLinear"): (Matrix("weight", "eio"),),
    ("timm.models.beit", "Attention"): _READS_LINEARS,
    ("timm.models.eva", "EvaAttention"): _READS_LINEARS,
    ("timm.models.swin_transformer_v2", "WindowAttention"): _READS_LINEARS,
    ("torchvision.models.swin_transformer", "ShiftedWindowAttention"): _READS_LINEARS,
}
# Experts of transformers: the class says by an attribute whether a matrix is stored [in, out].
_EXPERTS = ("gate_up_proj", "up_proj", "gate_proj", "down_proj")
_registered: dict[type[nn.Module], dict[str, Matrix]] = {}


def register_crossbar(cls: type[nn.Module], weight: str | Iterable[str] = "weight", layout: str = "oi") -> None:
    """Tells `convert` that a class of modules multiplies its input with a weight that sits on a crossbar.

    `convert` then puts this weight onto a crossbar in every module of the class and of its subclasses. A further call
    adds weights; for the same weight it replaces the layout. In every call the forward of the class must read the
    weight as an attribute of the module, `self.NAME`.

    Args:
        cls: a class derived from torch.nn.Module.
        weight: the name of the parameter, or several names.
        layout: how the weight is stored: "oi" [out, in, ...], "io" [in, out, ...], or, with one matrix per expert,
            "eoi" [experts, out, in] or "eio" [experts, in, out].

    Raises:
        TypeError: `cls` is no class of modules, or a name is no string.
        ValueError: no name, one that is no attribute's, or an unknown layout. Also torch.nn.Linear and Conv2d
            themselves, which have operators of their own.
    """
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        fail("cls", "must be a class derived from torch.nn.Module", cls, TypeError)
    if cls is nn.Module or cls in _TORCH:
        fail("cls", "must be a class of your own: nft_ext knows the layers of torch", cls.__name__)
    names = [weight] if isinstance(weight, str) else list(weight) if isinstance(weight, Iterable) else [weight]
    for name in names:
        if not isinstance(name, str):
            fail("weight", "must be the name of a parameter, or several names", name, TypeError)
    if not names or not all(name.isidentifier() for name in names):
        fail("weight", "must be the name of a parameter of the module, or several names", weight)
    one_of("layout", layout, LAYOUTS)
    known = _registered.setdefault(cls, {})
    known.update({name: Matrix(name, layout) for name in names})


def matrices(module: nn.Module) -> list[Matrix]:
    """The weights of a module, plain or noisy, that can sit on crossbars. The weights of its children are not listed.

    A class of an unknown kind has none. Of a parametrized or pruned weight, the name is that of the effective weight.
    """
    for kind in type(module).__mro__:
        if kind in _registered:
            return list(_registered[kind].values())
        known = _TORCH.get(kind) or _OTHERS.get((kind.__module__, kind.__qualname__))
        if known is _READS_LINEARS and not isinstance(module._modules.get("qkv"), nn.Linear):
            return []  # separate projections, or wrapped ones: its Linears are called
        if known is not None:
            groups = getattr(module, "groups", 1) if issubclass(kind, nn.modules.conv._ConvNd) else 1
            return [m._replace(groups=groups) for m in known if _has(module, m.parameter)]
        if kind.__module__.startswith("transformers.models."):
            if hasattr(module, "is_transposed"):
                layout = "eio" if module.is_transposed else "eoi"
                return [Matrix(name, layout) for name in _EXPERTS if _dims(module, name) == 3]
            if kind.__name__.endswith("TopKRouter") and _dims(module, "weight") == 2:
                return [Matrix("weight", "oi")]
        if kind is nn.RNNBase:
            return [Matrix(name, "oi") for name in vars(module)["_flat_weights_names"] if name.startswith("weight_")]
    return []


def only_on_request(module: nn.Module) -> bool:
    """Whether `convert` leaves the module digital unless `include` names it: a table of embeddings."""
    return isinstance(module, _ON_REQUEST)


def read_by_parent(module: nn.Module) -> list[str]:
    """Names of children whose weights are the module's own matrices: attention reads its out_proj's weight."""
    return list(dict.fromkeys(m.parameter.split(".")[0] for m in matrices(module) if "." in m.parameter))


def may_not_read(kind: type) -> bool:
    """Whether it is not known that the forward of a class reads its matrices: a subclass of a layer of torch."""
    return not any(base in _registered for base in kind.__mro__) and issubclass(kind, (*_TORCH, nn.RNNBase))


def _dims(module: nn.Module, name: str) -> int:
    parameter = module._parameters.get(name)
    return 0 if parameter is None else parameter.dim()


def _has(module: nn.Module, parameter: str) -> bool:
    *path, name = parameter.split(".")
    for part in path:
        module = getattr(module, part)
    return name in module.__dict__ or getattr(module, name, None) is not None
