"""What torch's autograd layer does with the raw operators: no derivative is lost in silence.

| a call                                            | products, `program`       | their backward | others  |
|---------------------------------------------------|---------------------------|----------------|---------|
| without derivatives                               | kernel                    | kernel         | kernel  |
| an argument requires a gradient                   | autograd Function: kernel | composed       | refused |
| the same inside torch.func, or one has a tangent  | composed                  | composed       | refused |

"composed" means torch's own operations on W_p, see nft_ext.ops.differentiable. torch.func calls the autograd layer once
per level, with the tensors of that level.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from nft_ext.ops import build_info  # noqa: F401  (loads the libraries)

_library = torch.library.Library("nft_ext", "IMPL")
_transformed = torch._C._are_functorch_transforms_active
_composed: dict[Any, Callable[..., Any]] = {}
_LEVEL = 0  # torch has one level of forward-mode differentiation; compiled graphs open it without `_current_level`


def is_special() -> bool:
    """Whether a torch.func transform or a level of forward-mode differentiation is active.

    The autograd layer must then see every call: tensors may carry derivatives without requiring a gradient.
    """
    return _transformed() or forward_ad._current_level >= 0


def has_tangent(values: Iterable[Any]) -> bool:
    """Whether a tensor among `values`, or in a list among them, has a tangent of forward-mode differentiation."""
    if not is_special():
        return False
    for value in values:
        if isinstance(value, Tensor):
            if forward_ad.unpack_dual(value, level=_LEVEL).tangent is not None:
                return True
        elif isinstance(value, (list, tuple)) and has_tangent(value):
            return True
    return False


def requires_grad(values: Iterable[Any]) -> bool:
    """Whether gradients are on and a tensor among `values`, or in a list among them, requires one."""
    return torch.is_grad_enabled() and torch._C._any_requires_grad(*values)


def call_special(operator: Any, *arguments: Any) -> Any:
    """Calls an operator where `is_special`. Inside torch.func by torch operations, which have rules for vmap."""
    compute: Any = _composed.get(operator, operator) if _transformed() else operator
    return compute(*arguments)


def call_composed(operator: Any, *arguments: Any) -> Any:
    """A product by torch operations on W_p: also in float64, which the compiled kernels do not have."""
    return _composed[operator](*arguments)


def differentiable(
    name: str, first: int, composed: Callable[..., Any], function: type[torch.autograd.Function] | None = None
) -> None:
    """Gives an operator all its derivatives.

    Args:
        name: the operator.
        first: the number of arguments with derivatives; they come first.
        composed: the same values and derivatives from torch operations.
        function: the autograd Function whose first derivative is a compiled kernel; None: `composed` has it.
    """

    def autograd(compiled: Callable[..., Any], *arguments: Any) -> Any:
        tangent = has_tangent(arguments)
        if not tangent and not requires_grad(arguments):
            return compiled(*arguments)
        if has_tangent(arguments[first:]) or requires_grad(arguments[first:]):
            raise RuntimeError(
                f"nft_ext::{name}: step and table must have no gradient and no tangent, because derivatives go "
                "straight through to the weight; got one that has. Detach it."
            )
        return (composed if tangent or function is None or _transformed() else function.apply)(*arguments)

    _register(name, autograd)
    if name != "program":  # its own rule for vmap
        _composed[_operator(name)] = composed


def constant(name: str) -> None:
    """Declares that an operator's result is a constant in every derivative."""
    _register(name, lambda compiled, *arguments: compiled(*arguments))


def refused(name: str, refuse: Callable[[str], Any]) -> None:
    """Makes an operator raise by refuse("require a gradient") or refuse("have a tangent")."""

    def autograd(compiled: Callable[..., Any], *arguments: Any) -> Any:
        if requires_grad(arguments):
            refuse("require a gradient")
        if has_tangent(arguments):
            refuse("have a tangent")
        return compiled(*arguments)

    _register(name, autograd)


def _operator(name: str) -> Any:
    return getattr(torch.ops.nft_ext, name).default


def _register(name: str, autograd: Callable[..., Any]) -> None:
    operator = _operator(name)

    def kernel(keyset: torch._C.DispatchKeySet, *arguments: Any) -> Any:
        def compiled(*arguments: Any) -> Any:
            with torch._C._AutoDispatchBelowAutograd():
                return operator.redispatch(keyset & torch._C._after_autograd_keyset, *arguments)

        return autograd(compiled, *arguments)

    _library.impl(name, kernel, "Autograd", with_keyset=True)
