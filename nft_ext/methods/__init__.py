"""Training methods: vanilla, noise injection, its control, and Negative Feedback Training (OVF, IRS).

Each method is one small object, usable in anybody's own loop (see `Method`) and by `nft_ext.fit`.
"""

from __future__ import annotations

import difflib
import inspect
from typing import Any

from nft_ext.checks import fail
from nft_ext.methods.base import Method
from nft_ext.methods.control import ScaledLogits
from nft_ext.methods.irs import IRS
from nft_ext.methods.noise_injection import NoiseInjection
from nft_ext.methods.ovf import OVF
from nft_ext.methods.vanilla import Vanilla

_METHODS: dict[str, type[Method]] = {m.name: m for m in (Vanilla, NoiseInjection, ScaledLogits, OVF, IRS)}
NAMES = tuple(_METHODS)


def options_of(name: str) -> dict[str, inspect.Parameter]:
    """The options that the method called `name` takes."""
    return dict(inspect.signature(_METHODS[name]).parameters)


def build(name: str, **options: Any) -> Method:
    """The method called `name` ("vanilla", "noise", "control", "ovf", "irs") with its options.

    Raises:
        ValueError: an unknown name (the near ones are given), an unknown, missing or bad option.
    """
    if name not in _METHODS:
        near = difflib.get_close_matches(str(name), NAMES, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        fail("method", f"must be one of {', '.join(NAMES)}{hint}", name)
    taken = options_of(name)
    unknown = [option for option in options if option not in taken]
    if unknown:
        fail(f"{name} options", f"must be among {', '.join(taken) or 'none'}", ", ".join(unknown))
    missing = [p.name for p in taken.values() if p.default is p.empty and p.name not in options]
    if missing:
        fail(f"{name} options", f"must include {', '.join(missing)}", ", ".join(options) or "none")
    return _METHODS[name](**options)


__all__ = ["IRS", "NAMES", "OVF", "Method", "NoiseInjection", "ScaledLogits", "Vanilla", "build", "options_of"]
