"""`fuse`: BatchNorm, residual addition and ReLU become the epilogue of noisy layers, for inference."""

from __future__ import annotations

import collections
import copy
import operator
import re
import warnings
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nft_ext._common.checks import fail
from nft_ext.nn import NoisyConv2d, NoisyLayer, NoisyLinear, check_noisy
from nft_ext.nn.base import as_kind
from nft_ext.nn.frozen import FusedGraph, freeze
from nft_ext.nn.fused import FusedConv2d, FusedLinear
from nft_ext.nn.joining import join_layers
from nft_ext.nn.traced import (
    NOISY,
    attribute,
    between,
    called,
    draws_nothing,
    has_hooks,
    is_fresh,
    is_plain,
    module_name,
    shared_tensors,
    writes_nothing,
)
from nft_ext.nn.tracer import Tracer, in_place, reason_of
from nft_ext.ops.functional import device_table

_FUSED = {NoisyConv2d: FusedConv2d, NoisyLinear: FusedLinear}
_NORM = {NoisyConv2d: nn.BatchNorm2d, NoisyLinear: nn.BatchNorm1d}
_RELUS = {torch.relu, torch.relu_, nn.functional.relu, nn.functional.relu_, "relu", "relu_"}
_ADDS = {operator.add, torch.add, "add"}


def fuse(model: nn.Module) -> nn.Module:
    """A copy of a noisy model for inference, with one operator per noisy layer and its epilogue.

    A chain of a noisy layer, BatchNorm, a residual addition and ReLU becomes
    y = relu((W_p x + b) * scale + shift + residual). All but the noisy layer are optional. A chain is folded only if
    the forward calls the layer once, nothing else uses the intermediate results, and no call in between may write to
    what the layer reads. Any other chain stays as it is. BatchNorm is folded now: scale = w / sqrt(var + eps) and
    shift = b - mean * scale, computed in float64, stored in float32. After further training, fuse again.

    On the CPU, consecutive layers are one operator call (nft_ext/nn/cascade.py), with the same bits. Hooks on layers,
    autocast and gradients turn that off.

    Noisy layers keep their names, streams and devices. The same key gives the same chips bit for bit, and `noise`,
    `chips`, `monte_carlo` and `noisy_layers` accept the result. Values differ only by the rounding of the epilogue. For
    weights programmed in 16 bits on CUDA, W_p * scale and the shift are rounded instead of W_p. Torch adds a residual
    of another shape or type than the product.

    Args:
        model: a model from `convert`. torch.fx traces it: the forward must not depend on values or shapes in Python,
            except in functions marked with torch.fx.wrap. A submodule that cannot be traced is called as it is; if it
            has noisy layers, a UserWarning names it. Inputs whose default is None must stay None.

    Returns:
        A torch.fx.GraphModule in eval mode, for torch.compile too. A forward in training mode is an error. Parameters
        do not require gradients. The state_dict has scales and shifts in place of the folded BatchNorms. Attributes of
        the model that the graph does not read any more cannot be set.

    Raises:
        TypeError: not a module.
        ValueError: no noisy layers, a model inside a noise context, a forward that torch.fx cannot trace or repeat, or
            hooks that it would drop.
    """
    layers = check_noisy(model)
    tracer = Tracer()
    for name, module in model.named_modules():
        if has_hooks(module) and (module is model or not tracer.is_leaf_module(module, name)):
            fail(
                "model",
                "must have no hooks on traced modules, torch.fx would drop them; contexts of nft_ext are hooks too: "
                "fuse outside of them",
                f"hooks on {name or 'the model itself'}",
            )
    for name, layer in layers.items():
        own = layer.noise_enabled and torch.equal(layer._table, device_table(layer.nvm, layer.anchor.device))
        if layer._key is not None or not own:
            fail(
                "model",
                "must be fused outside of noise contexts, because the copy would keep their chips and sigma",
                f"{name or 'a layer'} inside a context",
            )
    root = _copy(model)
    try:
        graph = tracer.graph_of(root)
    except Exception as error:  # the forward may raise anything on a symbolic input
        raise ValueError(
            f"model: must have a forward that torch.fx can trace, without Python decisions on values or shapes; "
            f"{_advice(model)}; got {reason_of(error)}"
        ) from error
    _warn_of_untraced(root, tracer)
    folded = _drop_identities(root, graph)
    for call in [node for node in reversed(graph.nodes) if node.op == "call_module"]:
        if (chain := _chain(root, graph, call)) is not None:
            folded |= _fold(root, graph, chain)
    _replace_relus(root, graph, folded)
    fused = FusedGraph(root, graph, type(model).__name__)  # keeps only the modules that the graph calls
    join_layers(fused)
    freeze(fused, root, folded)
    fused.graph.lint()
    fused.recompile()
    return fused


class _Chain(NamedTuple):
    """The nodes of one fused layer, in order, and their roles."""

    nodes: list[fx.Node]  # the noisy layer's call first
    norm: _BatchNorm | None
    residual: fx.Node | None
    into: str | None  # where the addition writes
    relu: bool
    place: fx.Node  # the fused layer is called here


def _copy(model: nn.Module) -> nn.Module:
    root = copy.deepcopy(model).eval().requires_grad_(False)
    return nn.Sequential(root) if isinstance(root, NoisyLayer) else root  # torch.fx traces the forward of a container


def _warn_of_untraced(root: nn.Module, tracer: Tracer) -> None:
    """A module that holds noisy layers may be most of the model."""
    noisy = [
        name for name in tracer.untraced if any(isinstance(m, NoisyLayer) for m in root.get_submodule(name).modules())
    ]
    if noisy:
        reasons = "; ".join(f"{name} ({tracer.untraced[name]})" for name in noisy[:3])
        more = f" and {len(noisy) - 3} more" if len(noisy) > 3 else ""
        warnings.warn(f"fuse: these submodules cannot be traced and stay as they are: {reasons}{more}", stacklevel=3)


def _advice(model: nn.Module) -> str:
    """Which submodules can be fused instead."""
    able: list[str] = []
    for name, module in model.named_modules():
        part_of = any(name.startswith(f"{found}.") for found in able)
        if module is model or part_of or isinstance(module, (NoisyLayer, nn.ModuleList, nn.ModuleDict)):
            continue
        layers = [m for m in module.modules() if isinstance(m, NoisyLayer)]
        if layers and not any(has_hooks(m) for m in module.modules()):
            try:
                Tracer().graph_of(_copy(module))
            except Exception:
                continue
            able.append(name)
    if not able:
        return "mark such functions, or use the model without fuse"
    able = [re.sub(r"\.(\d+)", r"[\1]", f"model.{name}") for name in able]
    first = able[0]
    others = f" (also {', '.join(able[1:4])}{' ...' if len(able) > 4 else ''})" if len(able) > 1 else ""
    return f"fuse the submodules that can be traced, for example {first} = nft_ext.fuse({first}){others}"


def _drop_identities(root: nn.Module, graph: fx.Graph) -> dict[str, str]:
    """Names of the modules that are gone."""
    dropped = {}
    for node in list(graph.nodes):
        if (
            node.op == "call_module"
            and type(module := called(root, node)) is nn.Identity
            and is_plain(module)
            and len(node.args) == 1
            and not node.kwargs
        ):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
            dropped[module_name(node)] = "the graph"
    return dropped


def _calls(root: nn.Module, graph: fx.Graph) -> collections.Counter[int]:
    """How many nodes may call each module, by id: also those that call or get a module around it."""
    found: collections.Counter[int] = collections.Counter()
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr"):
            module = attribute(root, node)
            found.update(id(m) for m in (module.modules() if isinstance(module, nn.Module) else ()))
    return found


def _chain(root: nn.Module, graph: fx.Graph, call: fx.Node) -> _Chain | None:
    """The longest chain after a layer's call that can be folded.

    The last layer of a model comes first: if two products are added, the later takes the other as its residual.
    Nothing else sees the memory between the links, since each result is new or written in place and has one user.
    """
    layer, calls = called(root, call), _calls(root, graph)
    if type(layer) in NOISY and layer.nvm.has_converters:
        return None  # the converters come between the product and the rest of the chain
    if type(layer) not in NOISY or not is_plain(layer) or calls[id(layer)] > 1 or len(call.args) != 1 or call.kwargs:
        return None
    chain = _Chain([call], None, None, None, False, call)
    while len(chain.nodes[-1].users) == 1 and not chain.relu:
        last, node = chain.nodes[-1], next(iter(chain.nodes[-1].users))
        added = _added(root, node, last) if chain.residual is None else None
        place = None if added is None else _place(root, [*chain.nodes, node], added[0])
        if (
            chain.norm is chain.residual is None
            and _is_norm(root, graph, node, layer)
            and calls[id(called(root, node))] == 1
        ):
            chain = chain._replace(norm=called(root, node))
        elif added is not None and place is not None:
            chain = chain._replace(residual=added[0], into=added[1], place=place)
        elif _is_relu(root, node, last):
            chain = chain._replace(relu=True)
        else:
            break
        chain.nodes.append(node)
    return chain


def _place(root: nn.Module, nodes: list[fx.Node], residual: fx.Node) -> fx.Node | None:
    """The node of a chain that the fused layer replaces, or None if no place is right.

    At the layer's call, the residual is read earlier than in the model. So no call up to the addition may write. A
    residual that is computed later moves the layer to the addition. Then the calls may also draw no chips, because
    layers would draw theirs in another order.
    """
    call, addition = nodes[0], nodes[-1]
    others = [node for node in between(call, addition) if node not in nodes]
    if not all(writes_nothing(root, node) for node in others):
        return None
    if residual not in others:
        return call
    return addition if all(draws_nothing(root, node) for node in others) else None


def _is_norm(root: nn.Module, graph: fx.Graph, node: fx.Node, layer: NoisyLayer) -> bool:
    if node.op != "call_module" or len(node.args) != 1 or node.kwargs:
        return False
    norm = called(root, node)
    return (
        type(norm) is _NORM[type(layer)]
        and is_plain(norm)
        and norm.running_mean is not None
        and norm.running_var is not None
        and norm.num_features == layer.weight.shape[0]
        and not shared_tensors(root, graph, norm)
    )


def _is_relu(root: nn.Module, node: fx.Node, mine: fx.Node) -> bool:
    if not node.args or node.args[0] is not mine:
        return False
    what = called(root, node)
    if node.op == "call_module":
        return type(what) is nn.ReLU and is_plain(what) and len(node.args) == 1 and not node.kwargs
    return node.op in ("call_function", "call_method") and what in _RELUS


def _added(root: nn.Module, node: fx.Node, mine: fx.Node) -> tuple[fx.Node, str | None] | None:
    """(the other operand, where the sum is written) if `node` adds something to `mine`, else None."""
    if node.op not in ("call_function", "call_method") or node.kwargs:
        return None
    augmented = node.target is in_place and node.args[0] == "iadd"
    operands = node.args[1:] if augmented else node.args
    if len(operands) != 2 or operands[0] is operands[1]:
        return None
    other = operands[1] if operands[0] is mine else operands[0]
    if not isinstance(other, fx.Node):
        return None
    if node.target in _ADDS:
        return other, None
    if augmented or (node.op == "call_method" and node.target == "add_"):
        if other is operands[1]:
            return other, "product"
        # Into the residual: right if nobody else sees its memory.
        return (other, "residual") if is_fresh(root, other) and len(other.users) == 1 else None
    return None


def _fold(root: nn.Module, graph: fx.Graph, chain: _Chain) -> dict[str, str]:
    """Replaces a chain by one node that calls the fused layer. Returns the names of the modules that it folds."""
    call, last = chain.nodes[0], chain.nodes[-1]
    scale, shift = (None, None) if chain.norm is None else _scale_and_shift(chain.norm)
    target = module_name(call)
    parent, _, name = target.rpartition(".")
    layer = as_kind(_FUSED[type(called(root, call))], called(root, call))
    layer.set_epilogue(scale, shift, chain.relu, chain.into)
    root.get_submodule(parent)._modules[name] = layer
    with graph.inserting_before(chain.place):
        fused = graph.call_module(target, call.args if chain.residual is None else (*call.args, chain.residual))
    last.replace_all_uses_with(fused)
    for node in reversed(chain.nodes):
        graph.erase_node(node)
    return {module_name(node): target for node in chain.nodes[1:] if node.op == "call_module"}


def _replace_relus(root: nn.Module, graph: fx.Graph, folded: dict[str, str]) -> None:
    """Other calls of a folded ReLU become functions: a hook or change of the module would reach only some calls."""
    for node in list(graph.nodes):
        if node.op == "call_module" and module_name(node) in folded and isinstance(relu := called(root, node), nn.ReLU):
            with graph.inserting_before(node):
                node.replace_all_uses_with(graph.call_function(nn.functional.relu, (node.args[0], relu.inplace)))
            graph.erase_node(node)


def _scale_and_shift(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """BatchNorm in eval mode as y * scale + shift, [out] float32 each, computed in float64."""
    assert norm.running_mean is not None and norm.running_var is not None  # `_is_norm` has checked that
    mean, variance = norm.running_mean.double(), norm.running_var.double()
    scale = (variance + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight.detach().double()
    shift = -mean * scale if norm.bias is None else norm.bias.detach().double() - mean * scale
    return scale.float(), shift.float()
