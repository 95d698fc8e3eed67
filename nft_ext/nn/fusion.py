"""`fuse`: BatchNorm, residual addition and ReLU become the epilogue of noisy layers, for inference."""

from __future__ import annotations

import collections
import copy
import operator
from typing import NamedTuple, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nft_ext._common.checks import fail
from nft_ext.nn import NoisyConv2d, NoisyLayer, NoisyLinear, check_noisy
from nft_ext.nn.base import as_kind
from nft_ext.nn.cascade import Cascade, Link
from nft_ext.nn.fused import FusedConv2d, FusedLayer, FusedLinear
from nft_ext.nn.traced import called, module_name, written_between

_FUSED = {NoisyConv2d: FusedConv2d, NoisyLinear: FusedLinear}
_NORM = {NoisyConv2d: nn.BatchNorm2d, NoisyLinear: nn.BatchNorm1d}
_RELUS = {torch.relu, torch.relu_, nn.functional.relu, nn.functional.relu_, "relu", "relu_", nn.ReLU}
_ADDS = {operator.add, torch.add, "add"}
_ADDS_IN_PLACE = {operator.iadd, "add_"}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def fuse(model: nn.Module) -> nn.Module:
    """A copy of a noisy model for inference, with one operator per noisy layer and its epilogue.

    A chain of a noisy layer, BatchNorm, a residual addition and ReLU becomes
    y = relu((W_p x + b) * scale + shift + residual). All but the noisy layer are optional. A chain is folded only if
    the forward calls the layer once and nothing else uses the intermediate results. BatchNorm is folded now:
    scale = w / sqrt(var + eps) and shift = b - mean * scale, computed in float64, stored in float32. After further
    training, fuse again.

    On the CPU, consecutive layers are one operator call (nft_ext/nn/cascade.py), with the same bits. Hooks on layers,
    autocast and gradients turn that off.

    Noisy layers keep their names, streams and devices. The same key gives the same chips bit for bit, and `noise`,
    `chips`, `monte_carlo` and `noisy_layers` accept the result. Values differ only by the rounding of the epilogue. For
    weights programmed in 16 bits on CUDA, W_p * scale and the shift are rounded instead of W_p. Torch adds a residual
    of another shape or type than the product.

    Args:
        model: a model from `convert`. torch.fx traces it: the forward must not depend on values or shapes in Python,
            except in functions marked with torch.fx.wrap.

    Returns:
        A torch.fx.GraphModule in eval mode, for torch.compile too. A forward in training mode is an error. Parameters
        do not require gradients. The state_dict has scales and shifts in place of the folded BatchNorms.

    Raises:
        TypeError: not a module.
        ValueError: no noisy layers, a forward that torch.fx cannot trace, or hooks that it would drop.
    """
    check_noisy(model)
    tracer = _Tracer()
    for name, module in model.named_modules():
        if _has_hooks(module) and (module is model or not tracer.is_leaf_module(module, name)):
            fail(
                "model",
                "must have no hooks on traced modules, torch.fx would drop them; contexts of nft_ext are hooks too: "
                "fuse outside of them",
                f"hooks on {name or 'the model itself'}",
            )
    root = copy.deepcopy(model).eval().requires_grad_(False)
    if isinstance(root, NoisyLayer):
        root = nn.Sequential(root)  # torch.fx traces the forward of a container
    try:
        graph = tracer.trace(root)
    except Exception as error:  # the forward may raise anything on a symbolic input
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise ValueError(
            f"model: must have a forward that torch.fx can trace (no Python decision on values or shapes, except in "
            f"functions marked with torch.fx.wrap); got {type(error).__name__}: {reason}"
        ) from error
    _drop_identities(root, graph)
    for chain in _chains(root, graph):
        _fold(root, graph, chain)
    fused = fx.GraphModule(root, graph, type(model).__name__)  # keeps only the modules that the graph calls
    for series in _series(fused):
        _join(fused, series)
    fused.graph.lint()
    fused.recompile()
    return fused


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, (NoisyLayer, _BatchNorm)) or super().is_leaf_module(m, module_qualified_name)


class _Chain(NamedTuple):
    """The nodes of one fused layer, in order, and their roles."""

    nodes: list[fx.Node]  # the noisy layer's call first
    norm: _BatchNorm | None
    residual: fx.Node | None
    relu: bool


def _has_hooks(module: nn.Module) -> bool:
    return any(getattr(module, kind) for kind in _HOOKS)


def _drop_identities(root: nn.Module, graph: fx.Graph) -> None:
    for node in list(graph.nodes):
        if node.op == "call_module" and type(module := called(root, node)) is nn.Identity and not _has_hooks(module):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def _chains(root: nn.Module, graph: fx.Graph) -> list[_Chain]:
    """The chains of all noisy layers that are called once and have no hooks.

    The last layer comes first: if two products are added, the later one takes the other result as its residual.
    """
    calls = [node for node in graph.nodes if node.op == "call_module" and type(called(root, node)) in _FUSED]
    times = collections.Counter(id(called(root, node)) for node in calls)
    taken: set[fx.Node] = set()
    chains = []
    for node in reversed(calls):
        layer = called(root, node)
        if times[id(layer)] == 1 and not _has_hooks(layer) and len(node.args) == 1 and not node.kwargs:
            chains.append(_chain(root, node, layer, taken))
            taken.update(chains[-1].nodes)
    return chains


def _chain(root: nn.Module, call: fx.Node, layer: NoisyLayer, taken: set[fx.Node]) -> _Chain:
    nodes, norm, residual, relu = [call], None, None, False
    while len(nodes[-1].users) == 1 and not relu:
        last, node = nodes[-1], next(iter(nodes[-1].users))
        if node in taken:
            break
        if norm is residual is None and _is_norm(root, node, layer):
            norm = called(root, node)
        elif (
            residual is None and (other := _added(node, last)) is not None and not written_between(root, [*nodes, node])
        ):
            residual = other
        elif _is_relu(root, node):
            relu = True
        else:
            break
        nodes.append(node)
    return _Chain(nodes, norm, residual, relu)


def _is_norm(root: nn.Module, node: fx.Node, layer: NoisyLayer) -> bool:
    if node.op != "call_module":
        return False
    norm = called(root, node)
    return (
        type(norm) is _NORM[type(layer)]
        and norm.running_mean is not None
        and norm.running_var is not None
        and norm.num_features == layer.weight.shape[0]
        and not _has_hooks(norm)
    )


def _is_relu(root: nn.Module, node: fx.Node) -> bool:
    what = called(root, node)
    if node.op == "call_module":
        return type(what) is nn.ReLU and not _has_hooks(what)
    return node.op in ("call_function", "call_method") and what in _RELUS


def _added(node: fx.Node, mine: fx.Node) -> fx.Node | None:
    """The other operand if `node` adds it to `mine`, else None."""
    if node.op not in ("call_function", "call_method") or len(node.args) != 2 or node.kwargs:
        return None
    first, second = node.args
    if (node.target in _ADDS_IN_PLACE and first is mine) or node.target in _ADDS:
        other = second if first is mine else first
        return other if isinstance(other, fx.Node) and other is not mine else None
    return None


def _fold(root: nn.Module, graph: fx.Graph, chain: _Chain) -> None:
    """Replaces a chain by one node that calls the fused layer."""
    call, last = chain.nodes[0], chain.nodes[-1]
    scale, shift = (None, None) if chain.norm is None else _scale_and_shift(chain.norm)
    target = module_name(call)
    parent, _, name = target.rpartition(".")
    plain = cast("NoisyLayer", root.get_submodule(target))
    root.get_submodule(parent)._modules[name] = _as_fused(plain, scale, shift, chain.relu)
    args = call.args if chain.residual is None else (*call.args, chain.residual)
    # The call stays at its place, where its input is read; with a residual it moves to the addition, because the
    # residual may be computed later.
    adding = next((node for node in chain.nodes if chain.residual in node.all_input_nodes), call)
    with graph.inserting_before(adding):
        fused = graph.call_module(target, args)
    last.replace_all_uses_with(fused)
    for node in reversed(chain.nodes):
        graph.erase_node(node)


def _scale_and_shift(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """BatchNorm in eval mode as y * scale + shift, [out] float32 each, computed in float64."""
    assert norm.running_mean is not None and norm.running_var is not None  # `_is_norm` has checked that
    mean, variance = norm.running_mean.double(), norm.running_var.double()
    scale = (variance + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight.detach().double()
    shift = -mean * scale if norm.bias is None else norm.bias.detach().double() - mean * scale
    return scale.float(), shift.float()


def _as_fused(plain: NoisyLayer, scale: Tensor | None, shift: Tensor | None, relu: bool) -> FusedLayer:
    layer = as_kind(_FUSED[type(plain)], plain)
    layer.set_epilogue(scale, shift, relu)
    return layer


def _series(model: fx.GraphModule) -> list[list[fx.Node]]:
    """All series of two or more consecutive fused layers whose last result is used."""
    found: list[list[fx.Node]] = [[]]
    for node in model.graph.nodes:
        if _may_join(model, node):
            found[-1].append(node)
        elif found[-1]:
            found.append([])
    return [series for series in found if len(series) > 1 and series[-1].users]


def _may_join(model: fx.GraphModule, node: fx.Node) -> bool:
    if node.op != "call_module" or not isinstance(layer := model.get_submodule(module_name(node)), FusedLayer):
        return False
    return getattr(layer, "padding_mode", "zeros") == "zeros" and all(isinstance(arg, fx.Node) for arg in node.args)


def _join(model: fx.GraphModule, series: list[fx.Node]) -> None:
    """Replaces the calls of the layers by one call of a Cascade.

    The graph passes the model's children to the Cascade, which finds the layers in them at each call. So a layer that
    the user replaces is called.
    """
    graph = model.graph
    inputs = list(dict.fromkeys(arg for node in series for arg in node.args if arg not in series))
    number = {node: i for i, node in enumerate([*inputs, *series])}
    kept = [node for node in series if any(user not in series for user in node.users)]
    paths = [module_name(node).split(".") for node in series]
    holders = list(dict.fromkeys(path[0] for path in paths))
    cascade = Cascade(
        [(holders.index(path[0]), *path[1:]) for path in paths],
        [Link(*(number[arg] for arg in node.args)) for node in series],
        [series.index(node) for node in kept],
        len(inputs),
    )
    name = next(name for i in range(len(graph.nodes)) if not hasattr(model, name := f"cascade{i}"))
    model.add_module(name, cascade)
    with graph.inserting_before(series[0]):
        call = graph.call_module(name, (tuple(map(graph.get_attr, holders)), *inputs))
        results = (
            [call] if len(kept) == 1 else [graph.call_function(operator.getitem, (call, i)) for i in range(len(kept))]
        )
    for node, result in zip(kept, results, strict=True):
        node.replace_all_uses_with(result)
    for node in reversed(series):
        graph.erase_node(node)
