"""Qualified names of modules, which do not change when a known wrapper is put around a model; and the wrappers.

A layer's chips follow from its name. So a model gives the same chips bare, compiled, averaged or in data-parallel
training. Only the wrapper classes below are left out: a user's own attribute called `module` is part of a name.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from torch import nn

# (module, class) -> attribute that holds the wrapped model. Looked up in sys.modules: importing some of them is slow,
# and a class that nobody imported has no instances.
_WRAPPERS = {
    ("torch.nn.parallel.data_parallel", "DataParallel"): "module",
    ("torch.nn.parallel.distributed", "DistributedDataParallel"): "module",
    ("torch.distributed.fsdp.fully_sharded_data_parallel", "FullyShardedDataParallel"): "_fsdp_wrapped_module",
    (
        "torch.distributed.algorithms._checkpoint.checkpoint_wrapper",
        "ActivationWrapper",
    ): "_checkpoint_wrapped_module",
    ("torch._dynamo.eval_frame", "OptimizedModule"): "_orig_mod",
    ("torch.optim.swa_utils", "AveragedModel"): "module",
    ("nft_ext.metrics.temperature", "Tempered"): "model",
}


def named(model: nn.Module) -> list[tuple[str, str, nn.Module]]:
    """(name, path, module) of every module, each once, in the order of `model.named_modules()`.

    The path is torch's name, for `get_submodule`. The name leaves out wrappers, so a wrapper has the name of what it
    wraps.
    """
    wrappers = _wrappers()
    modules: list[tuple[str, str, nn.Module]] = []
    _walk(model, "", "", wrappers, tuple(wrappers), set(), modules)
    return modules


def inside_wrappers(model: nn.Module) -> nn.Module:
    """The module in all known wrappers around a model. A wrapper passes its arguments on to it."""
    wrappers = _wrappers()
    while (attribute := next((a for kind, a in wrappers.items() if isinstance(model, kind)), None)) is not None:
        model = getattr(model, attribute)
    return model


def _wrappers() -> dict[type, str]:
    """The known wrapper classes that are imported -> their attributes."""
    found = {getattr(sys.modules.get(home), kind, None): attribute for (home, kind), attribute in _WRAPPERS.items()}
    return {kind: attribute for kind, attribute in found.items() if kind is not None}


def select(model: nn.Module, wanted: Callable[[nn.Module], bool]) -> dict[str, tuple[str, nn.Module]]:
    """name -> (path, module) of the modules that are `wanted`.

    A wrapper with layers of its own could give two of them one name. The later one then gets an apostrophe.
    """
    found: dict[str, tuple[str, nn.Module]] = {}
    for name, path, module in named(model):
        if wanted(module):
            while name in found:
                name += "'"
            found[name] = path, module
    return found


def _walk(
    module: nn.Module,
    name: str,
    path: str,
    wrappers: dict[type, str],
    kinds: tuple[type, ...],
    seen: set[nn.Module],
    found: list[tuple[str, str, nn.Module]],
) -> None:
    seen.add(module)
    found.append((name, path, module))
    children = module._modules
    if not children:
        return
    inner = None
    if isinstance(module, kinds):
        inner = next(attribute for kind, attribute in wrappers.items() if isinstance(module, kind))
    for key, child in children.items():
        if child is not None and child not in seen:
            child_path = f"{path}.{key}" if path else key
            child_name = name if key == inner else f"{name}.{key}" if name else key
            _walk(child, child_name, child_path, wrappers, kinds, seen, found)
