"""Finds fused layers that follow each other in a traced model, and makes each series one Cascade."""

from __future__ import annotations

import operator

from torch import fx

from nft_ext.nn.cascade import Cascade, Link
from nft_ext.nn.fused import FusedLayer
from nft_ext.nn.traced import module_name


def join_layers(model: fx.GraphModule) -> None:
    """Replaces every series of two or more consecutive fused layers by one call.

    Nothing lies between the layers of a series, so each still reads its inputs at the same time.
    """
    for series in _series(model):
        _join(model, series)


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
