"""Batch-norm, residual addition and ReLU after noisy products, done in the products' epilogue: for inference."""

from __future__ import annotations

import collections
import copy
import operator
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nft_ext._common.checks import fail
from nft_ext.nn import NoisyConv2d, NoisyLayer, NoisyLinear, check_noisy
from nft_ext.nn.base import as_kind
from nft_ext.nn.cascade import Cascade, Link
from nft_ext.nn.fused import FusedConv2d, FusedLayer, FusedLinear

_FUSED = {NoisyConv2d: FusedConv2d, NoisyLinear: FusedLinear}
_NORM = {NoisyConv2d: nn.BatchNorm2d, NoisyLinear: nn.BatchNorm1d}
_RELUS = {torch.relu, torch.relu_, nn.functional.relu, nn.functional.relu_, "relu", "relu_", nn.ReLU}
_ADDS = {operator.add, torch.add, "add"}
_ADDS_IN_PLACE = {operator.iadd, "add_"}
_WRITES = {
    getattr(operator, name)
    for name in (
        "iadd",
        "iand",
        "iconcat",
        "ifloordiv",
        "ilshift",
        "imatmul",
        "imod",
        "imul",
        "ior",
        "ipow",
        "irshift",
        "isub",
        "itruediv",
        "ixor",
        "setitem",
        "delitem",
    )
}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def fuse(model: nn.Module) -> nn.Module:
    """A copy of a noisy model, in eval mode, whose chains of a noisy layer, BatchNorm, a residual addition and ReLU
    (each but the first may be missing) are one operator each: y = relu((W_p x + b) * scale + shift + residual).

    An intermediate result is folded only where nothing else uses it, and only into a layer that the forward calls once.
    BatchNorm's
    weight and statistics are folded at this call: scale = w / sqrt(var + eps), shift = b - mean * scale, computed in
    float64, kept in float32. After training, fuse again.

    Layers that the forward calls one right after the other are one operator call on the CPU (nft_ext/nn/cascade.py):
    the bits of a call a layer, without Python in between. Hooks on layers, autocast and gradients switched on have the
    layers called.

    Noisy layers keep their names, streams and devices, so the same key gives the same chips bit for bit, and `noise`,
    `chips`, `monte_carlo` and `noisy_layers` take the result; values differ by the epilogue's rounding only (and where
    weights stand programmed in 16 bits on CUDA, by one rounding of W_p * scale instead of W_p's, and the shift's). A
    residual that turns out to have another shape or type than the product is added by torch.

    Args:
        model: as `convert` gives it. It is traced by torch.fx: its forward must not depend on values or shapes in
            Python, except in functions marked with torch.fx.wrap.

    Returns:
        A torch.fx.GraphModule, which torch.compile takes. For inference: a forward in training mode is an error,
        parameters do not require gradients. The state_dict keys are not those of `model`: folded BatchNorms are gone,
        scale and shift come in.

    Raises:
        TypeError, ValueError: not a module, no noisy layers; a forward that torch.fx cannot trace, or hooks that it
            would drop, with the reason. `model` itself is never changed.
    """
    check_noisy(model)
    tracer = _Tracer()
    for name, module in model.named_modules():
        if _has_hooks(module) and (module is model or not tracer.is_leaf_module(module, name)):
            fail(
                "model",
                "must have no hooks on the modules that are traced, torch.fx would drop them (a context of nft_ext is one "
                "too: fuse outside of it)",
                f"hooks on {name or 'the model itself'}",
            )
    root = copy.deepcopy(model).eval().requires_grad_(False)
    if isinstance(root, NoisyLayer):
        root = nn.Sequential(root)  # what torch.fx traces has a forward of its own
    try:
        graph = tracer.trace(root)
    except Exception as error:  # whatever the model's forward raises on a symbolic input
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise ValueError(
            f"model: must have a forward that torch.fx can trace (no Python decision on values or shapes, except in "
            f"functions marked with torch.fx.wrap); got {type(error).__name__}: {reason}"
        ) from error
    _drop_identities(root, graph)
    for chain in _chains(root, graph):
        _fold(root, graph, chain)
    fused = fx.GraphModule(root, graph, type(model).__name__)  # without what nobody calls any more
    for run in _runs(fused):
        _join(fused, run)
    fused.graph.lint()
    fused.recompile()
    return fused


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, qualified_name: str) -> bool:
        return isinstance(m, (NoisyLayer, _BatchNorm)) or super().is_leaf_module(m, qualified_name)


class _Chain(NamedTuple):
    """Nodes of one fused layer, in order, and what they are."""

    nodes: list[fx.Node]  # the noisy layer's call first
    norm: _BatchNorm | None
    residual: fx.Node | None
    relu: bool


def _has_hooks(module: nn.Module) -> bool:
    return any(getattr(module, kind) for kind in _HOOKS)


def _what(root: nn.Module, node: fx.Node) -> Any:
    """The module that a node calls, the function, or the name of the method."""
    return root.get_submodule(node.target) if node.op == "call_module" else node.target


def _drop_identities(root: nn.Module, graph: fx.Graph) -> None:
    for node in list(graph.nodes):
        if node.op == "call_module" and type(module := _what(root, node)) is nn.Identity and not _has_hooks(module):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def _chains(root: nn.Module, graph: fx.Graph) -> list[_Chain]:
    """The chain of every noisy layer that is called once and has no hooks. Last ones first: of two products that are
    added, the later takes the other's result as its residual.
    """
    calls = [node for node in graph.nodes if node.op == "call_module" and type(_what(root, node)) in _FUSED]
    times = collections.Counter(id(_what(root, node)) for node in calls)
    taken: set[fx.Node] = set()
    chains = []
    for node in reversed(calls):
        layer = _what(root, node)
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
            norm = _what(root, node)
        elif (
            residual is None
            and (other := _added(node, last)) is not None
            and not _written_between(root, [*nodes, node])
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
    norm = _what(root, node)
    return (
        type(norm) is _NORM[type(layer)]
        and norm.running_mean is not None
        and norm.running_var is not None
        and norm.num_features == layer.weight.shape[0]
        and not _has_hooks(norm)
    )


def _is_relu(root: nn.Module, node: fx.Node) -> bool:
    what = _what(root, node)
    if node.op == "call_module":
        return type(what) is nn.ReLU and not _has_hooks(what)
    return node.op in ("call_function", "call_method") and what in _RELUS


def _added(node: fx.Node, mine: fx.Node) -> fx.Node | None:
    """The other operand where `node` adds it to `mine`."""
    if node.op not in ("call_function", "call_method") or len(node.args) != 2 or node.kwargs:
        return None
    first, second = node.args
    if (node.target in _ADDS_IN_PLACE and first is mine) or node.target in _ADDS:
        other = second if first is mine else first
        return other if isinstance(other, fx.Node) and other is not mine else None
    return None


def _written_between(root: nn.Module, chain: list[fx.Node]) -> bool:
    """Whether another node between the chain's first and last may write in place: the layer's input and the residual
    are read together, at another moment than before.
    """
    node = chain[0]
    while (node := node.next) is not chain[-1]:
        if node not in chain and _may_write(root, node):
            return True
    return False


def _may_write(root: nn.Module, node: fx.Node) -> bool:
    what = _what(root, node)
    if node.op == "call_module":
        return bool(getattr(what, "inplace", False))
    if node.op not in ("call_function", "call_method"):
        return False
    if node.op == "call_method":
        return what.endswith("_") and not what.endswith("__")
    name, home = (
        getattr(what, "__name__", ""),
        getattr(what, "__module__", None) or "torch",
    )  # torch's built-in functions have no home
    if home == "_operator":
        return what in _WRITES
    flags = [*node.args, *node.kwargs.values()]
    return (
        name.endswith("_")
        or "out" in node.kwargs
        or any(flag is True for flag in flags)  # functional.relu(x, True)
        or not home.startswith(("torch", "builtins", "math"))
    )


def _fold(root: nn.Module, graph: fx.Graph, chain: _Chain) -> None:
    """One node in place of the chain's, which calls the fused layer in place of the noisy one."""
    call, last = chain.nodes[0], chain.nodes[-1]
    scale, shift = (None, None) if chain.norm is None else _scale_and_shift(chain.norm)
    parent, _, name = call.target.rpartition(".")
    plain = root.get_submodule(call.target)
    root.get_submodule(parent)._modules[name] = _as_fused(plain, scale, shift, chain.relu)
    args = call.args if chain.residual is None else (*call.args, chain.residual)
    # At the layer's place, so that its input is read when it was; with a residual where that is first used: it may come
    # later.
    adding = next((node for node in chain.nodes if chain.residual in node.all_input_nodes), call)
    with graph.inserting_before(adding):
        fused = graph.call_module(call.target, args)
    last.replace_all_uses_with(fused)
    for node in reversed(chain.nodes):
        graph.erase_node(node)


def _scale_and_shift(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """BatchNorm in eval mode as y * scale + shift, [out] float32 each, computed in float64."""
    mean, variance = norm.running_mean.double(), norm.running_var.double()
    scale = (variance + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight.detach().double()
    shift = -mean * scale if norm.bias is None else norm.bias.detach().double() - mean * scale
    return scale.float(), shift.float()


def _as_fused(plain: NoisyLayer, scale: Tensor | None, shift: Tensor | None, relu: bool) -> FusedLayer:
    layer = as_kind(_FUSED[type(plain)], plain)
    layer.follow(scale, shift, relu)
    return layer


def _runs(model: fx.GraphModule) -> list[list[fx.Node]]:
    """Fused layers called one right after the other, two or more, and the last of use to somebody."""
    runs: list[list[fx.Node]] = [[]]
    for node in model.graph.nodes:
        if _may_join(model, node):
            runs[-1].append(node)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if len(run) > 1 and run[-1].users]


def _may_join(model: fx.GraphModule, node: fx.Node) -> bool:
    if node.op != "call_module" or not isinstance(layer := model.get_submodule(node.target), FusedLayer):
        return False
    return getattr(layer, "padding_mode", "zeros") == "zeros" and all(isinstance(arg, fx.Node) for arg in node.args)


def _join(model: fx.GraphModule, run: list[fx.Node]) -> None:
    """One call of a Cascade in place of the layers' calls. It finds the layers below the model's own children, which
    the graph hands to
    it: what a user puts in a layer's place is what is called."""
    graph = model.graph
    inputs = list(dict.fromkeys(arg for node in run for arg in node.args if arg not in run))
    number = {node: i for i, node in enumerate([*inputs, *run])}
    kept = [node for node in run if any(user not in run for user in node.users)]
    paths = [node.target.split(".") for node in run]
    holders = list(dict.fromkeys(path[0] for path in paths))
    cascade = Cascade(
        [(holders.index(path[0]), *path[1:]) for path in paths],
        [Link(*(number[arg] for arg in node.args)) for node in run],
        [run.index(node) for node in kept],
        len(inputs),
    )
    name = next(name for i in range(len(graph.nodes)) if not hasattr(model, name := f"cascade{i}"))
    model.add_module(name, cascade)
    with graph.inserting_before(run[0]):
        call = graph.call_module(name, (tuple(map(graph.get_attr, holders)), *inputs))
        results = (
            [call] if len(kept) == 1 else [graph.call_function(operator.getitem, (call, i)) for i in range(len(kept))]
        )
    for node, result in zip(kept, results, strict=True):
        node.replace_all_uses_with(result)
    for node in reversed(run):
        graph.erase_node(node)
