"""Nodes of a graph traced by torch.fx: what they call, and whether they may write in place."""

from __future__ import annotations

import operator
from typing import Any, cast

from torch import fx, nn

_WRITES = {
    *(operator.iadd, operator.iand, operator.iconcat, operator.ifloordiv, operator.ilshift, operator.imatmul),
    *(operator.imod, operator.imul, operator.ior, operator.ipow, operator.irshift, operator.isub),
    *(operator.itruediv, operator.ixor, operator.setitem, operator.delitem),
}


def called(root: nn.Module, node: fx.Node) -> Any:
    """The module or function that a node calls, or the name of the method."""
    return root.get_submodule(module_name(node)) if node.op == "call_module" else node.target


def module_name(node: fx.Node) -> str:
    """The qualified name of the module that a node calls."""
    return cast("str", node.target)


def written_between(root: nn.Module, chain: list[fx.Node]) -> bool:
    """Whether a node between the chain's first and last may write in place.

    Folding changes when the layer's input and the residual are read, so such a write could change them.
    """
    node = chain[0]
    while (node := node.next) is not chain[-1]:
        if node not in chain and _may_write(root, node):
            return True
    return False


def _may_write(root: nn.Module, node: fx.Node) -> bool:
    what = called(root, node)
    if node.op == "call_module":
        return bool(getattr(what, "inplace", False))
    if node.op not in ("call_function", "call_method"):
        return False
    if node.op == "call_method":
        return what.endswith("_") and not what.endswith("__")
    name = getattr(what, "__name__", "")
    home = getattr(what, "__module__", None) or "torch"  # torch's built-in functions have no module
    if home == "_operator":
        return what in _WRITES
    flags = [*node.args, *node.kwargs.values()]
    return (
        name.endswith("_")
        or "out" in node.kwargs
        or any(flag is True for flag in flags)  # functional.relu(x, True)
        or not home.startswith(("torch", "builtins", "math"))
    )
