"""Classes of weight-level layers: the module's own class with noise before it, made once per class.

A converted module stays an instance of its class. Its forward runs on a view: an object with the same attributes, whose
weights are the programmed ones. So the module's own parameters never change, other threads and code outside of the
forward read the trained weights, and an error needs no cleaning up. In a compiled graph there is no other thread, and
what a forward writes to its module must reach the module itself: there, the module swaps its weights for a while.
"""

from __future__ import annotations

import functools
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from nft_ext._common.code_identity import PLAIN
from nft_ext.nn.crossbars import matrices

_VIEW = "_nft_ext_view"


def noisy_class(module: nn.Module, mixin: type) -> type:
    """The class of `module` with `mixin` before it.

    Args:
        module: plain.
        mixin: the base of weight-level layers.
    """
    kind = type(module)
    if parametrize.is_parametrized(module):  # torch expects the class below to be its first base
        found = _rebased(kind, _noisy(kind.__bases__[0], mixin, module))
        setattr(found, PLAIN, kind)
        found._own_class = found  # pyright: ignore[reportAttributeAccessIssue]
        for name in _names(module):
            own = vars(found).get(name)
            if isinstance(own, property):
                setattr(found, name, property(_own_or_swapped(name, own.fget), own.fset))
        if (copying := vars(found).get("__deepcopy__")) is not None:
            found.__deepcopy__ = _cleaned(copying)
        return found
    return _noisy(kind, mixin, module)


def plain_class(layer: nn.Module, mixin: type) -> type:
    """The class that a weight-level layer had before, and for a layer parametrized since then, that class so too."""
    kind = type(layer)
    if PLAIN in vars(kind):
        plain = vars(kind)[PLAIN]
        return _rebased(plain, plain.__bases__[0]) if parametrize.is_parametrized(layer) else plain  # pyright: ignore
    base = next(vars(base)[PLAIN] for base in kind.__mro__ if PLAIN in vars(base))
    return _rebased(kind, base) if parametrize.is_parametrized(layer) else base


def swaps_itself(layer: Any) -> bool:
    """Whether a layer's attributes are its swapped weights: not if it was parametrized after its conversion."""
    kind = type(layer)
    return kind._own_class is kind


def view_of(module: nn.Module, weights: dict[str, Any], seen: set[str]) -> Any:
    """An object like `module` that shares its attributes but has other weights.

    Args:
        module: a weight-level layer, or a child whose weights it reads.
        weights: name -> the weight; of a child, the child's view.
        seen: the names of weights that were read; the view adds to it.
    """
    kind = type(module)
    view = vars(kind).get(_VIEW)
    if view is None:
        names = {name: property(_seen(name)) for name in weights}
        view = type(kind.__name__, (kind,), {"__slots__": ("_swapped", "_seen"), **_described(kind), **names})
        setattr(kind, _VIEW, view)
    found = object.__new__(view)
    found.__dict__ = module.__dict__
    object.__setattr__(found, "_swapped", weights)
    object.__setattr__(found, "_seen", seen)
    return found


def rebuilt(plain: type[nn.Module], names: tuple[str, ...], children: tuple[str, ...], mixin: type) -> nn.Module:
    """An empty weight-level layer of a plain class, to be filled with a pickled state."""
    return object.__new__(_made(plain, mixin, names, children))


def names_of(kind: type) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The weights and the children that instances of a weight-level class swap."""
    return kind._own_weights, kind._read_children  # pyright: ignore[reportAttributeAccessIssue]


def _names(module: nn.Module) -> list[str]:
    return [m.parameter for m in matrices(module) if "." not in m.parameter]


def _noisy(plain: type, mixin: type, module: nn.Module) -> type:
    children = dict.fromkeys(m.parameter.split(".")[0] for m in matrices(module) if "." in m.parameter)
    return _made(plain, mixin, tuple(_names(module)), tuple(children))


def _made(plain: type, mixin: type, names: tuple[str, ...], children: tuple[str, ...]) -> type:
    # Python keeps the subclasses of a class by weak references: no table of ours keeps classes alive.
    for known in plain.__subclasses__():
        if vars(known).get(PLAIN) is plain and names_of(known) == (names, children):
            return known

    @functools.wraps(plain.forward)  # its signature, which libraries read
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self.forward_on_chips(args, kwargs)

    body = {
        PLAIN: plain,
        "_own_weights": names,
        "_read_children": children,
        "forward": forward,
        "__doc__": plain.__doc__,
        **_described(plain),
    }
    for name in names:
        own = getattr(plain, name, None)
        getter = own.fget if isinstance(own, property) else _stored(name)
        setter = own.fset if isinstance(own, property) else _store(name)
        body[name] = property(_own_or_swapped(name, getter), setter, _drop(name))
    for name in children:
        body[name] = property(_own_or_swapped(name, _child(name)))
    if issubclass(plain, nn.RNNBase):
        body["_flat_weights"] = property(_flat, _store("_flat_weights"), _drop("_flat_weights"))
        body["_update_flat_weights"] = _update_flat
    if hasattr(plain, "__deepcopy__"):
        body["__deepcopy__"] = _cleaned(getattr(plain, "__deepcopy__"))  # noqa: B009
    made: Any = type(f"Noisy{plain.__name__}", (mixin, plain), body)
    made._own_class = made
    return made


def _described(plain: type) -> dict[str, Any]:
    return {"__module__": plain.__module__, "__qualname__": plain.__qualname__}


def _rebased(parametrized: type, base: type) -> type:
    """torch's class of a parametrized module, on another base. Each module needs its own: torch changes it later."""
    kept = {
        k: v for k, v in vars(parametrized).items() if k not in ("__dict__", "__weakref__", "_own_class", PLAIN, _VIEW)
    }
    return type(f"Parametrized{base.__name__}", (base,), kept)


# ---- attributes of the classes


def _own_or_swapped(name: str, own: Any) -> Any:
    def get(self: Any) -> Any:
        swapped = self._swapped
        return own(self) if swapped is None else swapped[name]

    return get


def _seen(name: str) -> Any:
    def get(view: Any) -> Any:
        view._seen.add(name)
        return view._swapped[name]

    return get


def _stored(name: str) -> Any:
    """A parameter, or what a hook or a replica stores as a plain attribute."""

    def get(self: Any) -> Any:
        parameters = self.__dict__.get("_parameters", {})
        if name in parameters:
            return parameters[name]
        if name in self.__dict__:
            return self.__dict__[name]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    return get


def _store(name: str) -> Any:
    def put(self: Any, value: Any) -> None:
        self.__dict__[name] = value

    return put


def _drop(name: str) -> Any:
    def drop(self: Any) -> None:
        if name not in self.__dict__:
            raise AttributeError(name)
        del self.__dict__[name]

    return drop


def _child(name: str) -> Any:
    return lambda self: self._modules[name]


def _flat(self: Any) -> Any:
    """What torch's recurrent kernels read: the weights of this forward, in their order."""
    if self._swapped is None:
        return self.__dict__["_flat_weights"]
    return [getattr(self, name, None) for name in self._flat_weights_names]


def _update_flat(self: Any) -> None:
    if self._swapped is None:  # otherwise torch would take the programmed weights for new parameters
        nn.RNNBase._update_flat_weights(self)


def _cleaned(copying: Any) -> Any:
    """A class's own __deepcopy__, whose result leaves the contexts of the original."""

    def deepcopy(self: Any, memo: Any) -> Any:
        found = copying(self, memo)
        found.leave_contexts()
        return found

    return deepcopy
