"""Nodes of a graph traced by torch.fx: what they call, and which calls are known to write nothing.

Folding reads a value at another time than the model did. That is right if no call in between can write to memory. Only
calls on the closed lists below count as such, so an unknown call blocks the fold.
"""

from __future__ import annotations

import math
import operator
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from nft_ext.nn import NoisyConv2d, NoisyLinear
from nft_ext.nn.fused import FusedConv2d, FusedLinear
from nft_ext.nn.tracer import must_be_tensor


def _of(home: Any, names: str) -> set[Any]:
    return {getattr(home, name) for name in names.split()}


NOISY = {NoisyConv2d, NoisyLinear}
_DRAWING = {*NOISY, FusedConv2d, FusedLinear}
_FRESH = {*_DRAWING, *_of(nn, "Conv2d Linear BatchNorm1d BatchNorm2d")}  # their results are new memory
_PURE_MODULES = {
    *(_FRESH | _of(nn, "Flatten LayerNorm GroupNorm Sigmoid Tanh GELU Softmax Softplus AvgPool2d MaxPool2d ZeroPad2d")),
    *_of(nn, "AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveMaxPool2d"),
}
_BOTH = (
    "abs amax amin cat ceil chunk clamp cos div eq exp flatten floor ge gt le log lt matmul maximum mean minimum mul "
    "ne neg permute pow reshape rsqrt sigmoid sin softmax split sqrt square squeeze stack sub sum tanh transpose "
    "unbind unsqueeze where"
)
_MORE_METHODS = "clone contiguous detach dim expand float numel size t to type_as view view_as"
# No "add": a set has that method, too.
_METHODS = {*_BOTH.split(), *_MORE_METHODS.split()}
_FUNCTIONS = {
    *(_of(torch, _BOTH + " add bmm") | {getattr, math.sqrt, must_be_tensor}),
    *_of(operator, "add and_ eq floordiv ge getitem gt invert le lt matmul mod mul ne neg or_ pos pow sub truediv xor"),
    *_of(
        nn.functional, "adaptive_avg_pool2d avg_pool2d gelu interpolate layer_norm log_softmax max_pool2d pad softmax"
    ),
}
_WITH_IN_PLACE = _of(nn.functional, "relu silu leaky_relu relu6") | {torch.relu}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def called(root: nn.Module, node: fx.Node) -> Any:
    """The module or function that a node calls, or the name of the method."""
    return root.get_submodule(module_name(node)) if node.op == "call_module" else node.target


def module_name(node: fx.Node) -> str:
    """The qualified name of the module that a node calls."""
    return cast("str", node.target)


def attribute(root: nn.Module, node: fx.Node) -> Any:
    """The module that a node calls, or the attribute that it gets."""
    parent, _, name = module_name(node).rpartition(".")
    return getattr(root.get_submodule(parent), name)


def has_hooks(module: nn.Module) -> bool:
    """Whether hooks run around the module's forward."""
    return any(getattr(module, kind) for kind in _HOOKS)


def is_plain(module: nn.Module) -> bool:
    """Whether a call is the forward of the module's class and nothing else, in eval mode."""
    return not has_hooks(module) and "forward" not in vars(module) and not module.training


def is_fresh(root: nn.Module, node: fx.Node) -> bool:
    """Whether the node's result is new memory that no other value shares."""
    return node.op == "call_module" and type(module := called(root, node)) in _FRESH and is_plain(module)


def between(first: fx.Node, last: fx.Node) -> list[fx.Node]:
    """The nodes after `first` and before `last`, in order."""
    found, node = [], first
    while (node := node.next) is not last:
        found.append(node)
    return found


def writes_nothing(root: nn.Module, node: fx.Node) -> bool:
    """Whether the node is known to change no memory and to keep no reference. Unknown calls may do both."""
    if node.op == "get_attr":
        return True
    if node.op == "call_module":
        return type(module := called(root, node)) in _PURE_MODULES and is_plain(module)
    if node.op not in ("call_function", "call_method") or "out" in node.kwargs or "inplace" in node.kwargs:
        return False
    if node.op == "call_method":
        return node.target in _METHODS
    return node.target in _FUNCTIONS or (node.target in _WITH_IN_PLACE and len(node.args) == 1 and not node.kwargs)


def draws_nothing(root: nn.Module, node: fx.Node) -> bool:
    """Whether a node that writes nothing draws no chip from torch's generator."""
    return node.op != "call_module" or type(called(root, node)) not in _DRAWING


def shared_tensors(root: nn.Module, graph: fx.Graph, module: nn.Module) -> bool:
    """Whether another module, or the graph itself, uses parameters or buffers of `module`."""
    own = {_memory(t) for t in _tensors(module)}
    others = [t for other in root.modules() if other is not module for t in _tensors(other)]
    read = [attribute(root, node) for node in graph.nodes if node.op == "get_attr"]
    others += [value for value in read if isinstance(value, Tensor)]
    return any(_memory(t) in own for t in others)


def _tensors(module: nn.Module) -> list[Tensor]:
    return [t for t in (*module._parameters.values(), *module._buffers.values()) if t is not None and t.numel()]


def _memory(t: Tensor) -> Any:
    return t.untyped_storage().data_ptr() or id(t)
