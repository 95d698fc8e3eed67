"""What `fuse` returns: a graph that refuses changes without effect."""

from __future__ import annotations

from typing import Any, NoReturn, cast

from torch import fx, nn
from torch.fx.graph_module import reduce_graph_module

from nft_ext._common.checks import fail
from nft_ext.nn.fused import FusedLayer


class Frozen(nn.Module):
    """Refuses reads and writes of what was folded, or was read once when the model was fused."""

    def __getattr__(self, name: str) -> Any:
        if name in self.__dict__.get("_frozen", ()):
            self._refuse(name)
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.__dict__.get("_frozen", ()):
            self._refuse(name)
        super().__setattr__(name, value)

    def _refuse(self, name: str) -> NoReturn:
        raise AttributeError(
            f"{name}: {self.__dict__['_frozen'][name]} when the model was fused, so the fused model does not read it. "
            "Change the original model and fuse again"
        )


class Module(Frozen):
    """Holds the layers of a traced container under its name. torch.fx never calls it.

    The class name is that of torch's own holders, because a journal's hash of the network holds it.
    """

    def _never_called(self, *args: Any, **kwargs: Any) -> NoReturn:
        fail(
            "hook",
            "must be on a layer or on the whole fused model, because a fused model does not call its containers",
            "Module",
            RuntimeError,
        )

    register_forward_hook = register_forward_pre_hook = _never_called
    register_full_backward_hook = register_full_backward_pre_hook = register_backward_hook = _never_called


class FusedGraph(Frozen, fx.GraphModule):
    """The traced model. Copies and pickles stay of this class."""

    def train(self, mode: bool = True) -> FusedGraph:
        if mode and not any(isinstance(m, FusedLayer) for m in self.modules()):
            fail(
                "model",
                "must stay in eval mode, because it was fused. Train the original model",
                "train()",
                RuntimeError,
            )
        return super().train(mode)  # otherwise the fused layers refuse to be called

    def __deepcopy__(self, memo: Any) -> FusedGraph:
        return _frozen_as(super().__deepcopy__(memo), self)

    def __copy__(self) -> FusedGraph:
        return _frozen_as(FusedGraph(self, self.graph, type(self).__name__), self)

    def __reduce__(self) -> tuple:
        _, arguments = super().__reduce__()
        return _unpickled, (*arguments, type(self).__name__)


def freeze(fused: FusedGraph, original: nn.Module, folded: dict[str, str]) -> None:
    """Marks in `fused` what its graph does not read any more.

    Args:
        fused: the graph with all folds done.
        original: the model that was traced.
        folded: qualified names of modules that are part of another, and the name of that one.
    """
    holders = {name: m for name, m in fused.named_modules() if m is fused or type(m) is nn.Module}
    known = {*dir(fx.GraphModule), *vars(fused), "_frozen"}
    for path, holder in holders.items():
        source = original.get_submodule(path)
        names = {*source._modules, *vars(source), *source._buffers, *source._parameters}
        names |= {name for name in dir(type(source)) if not name.startswith("_")}
        frozen = dict(vars(source).get("_frozen", {}))
        for name in names - known:
            child = f"{path}.{name}".removeprefix(".")
            if child in folded:
                frozen[name] = f"was folded into {folded[child]}"
            elif not hasattr(holder, name):
                frozen[name] = "was read, or was not needed,"
        holder._non_persistent_buffers_set |= source._non_persistent_buffers_set & set(holder._buffers)
        holder.__dict__["_frozen"] = frozen
        if holder is not fused:
            cast("Any", holder).__class__ = Module


def _frozen_as(copied: Any, model: nn.Module) -> FusedGraph:
    type(copied).__name__ = type(model).__name__  # part of a journal's hash
    copied.__dict__["_frozen"] = dict(vars(model).get("_frozen", {}))
    return copied


def _unpickled(body: dict[str, Any], import_block: str, name: str) -> FusedGraph:
    found = cast("fx.GraphModule", reduce_graph_module(body, import_block))
    type(found).__name__ = name
    return _frozen_as(FusedGraph(found, found.graph, name), found)
