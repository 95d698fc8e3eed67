"""Keys: they name the chips whose noise an operator samples (docs/reference/noise.md).

A key is an int64 tensor [S, 2], one row per chip: (seed, draw + domain * 2^32). Chips for training, selection and
evaluation have different domains. A chip of one domain never occurs in another, for any seed.
"""

from __future__ import annotations

import hashlib
import numbers
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch._functorch import config
from torch.fx import traceback

from nft_ext._common.checks import fail, integer, one_of, torch_device
from nft_ext.ops import build_info  # noqa: F401  (loads the libraries)

DOMAINS = {"evaluation": 0, "training": 1, "selection": 2, "permutation": 3}


def noise_key(
    seed: int = 0,
    draws: int | Iterable[int] = 0,
    *,
    domain: str = "evaluation",
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """Key of the chips `draws` under `seed`.

    Args:
        seed: 64-bit Philox key, 0 <= seed < 2^64.
        draws: chip numbers, each 0 <= draw < 2^32.
        domain: evaluation, training, selection or permutation.
        device: the torch device of the key, which must be that of the weight.

    Returns:
        int64 tensor [S, 2].

    Raises:
        TypeError: device is no torch device.
        ValueError: seed or a draw out of range, no draws, an unknown domain or device.
    """
    seed = integer("seed", seed, 0, 2**64 - 1)
    one_of("domain", domain, DOMAINS)
    if device is not None and not isinstance(device, torch.device):
        device = torch_device("device", device)
    if type(draws) is int or isinstance(draws, numbers.Integral):
        numbered: list[Any] = [draws]
    elif isinstance(draws, Iterable):
        numbered = list(draws)
    else:
        fail("draws", "must be an integer or an iterable of integers", draws)
    if not numbered:
        fail("draws", "must name at least one chip", numbered)
    high = DOMAINS[domain] << 32
    rows = [[seed - 2**64 if seed >= 2**63 else seed, integer("draws", d, 0, 2**32 - 1) + high] for d in numbered]
    if device is None or torch.compiler.is_compiling():
        return torch.tensor(rows, dtype=torch.int64, device=device)
    # Half the time of torch.tensor: it counts for small layers.
    key = torch.from_numpy(np.array(rows, np.int64))
    return key if device.type == "cpu" else key.to(device)


# An operator, because randint in a compiled graph uses another generator than in eager mode. Defined in Python, because
# the stable ABI of torch 2.11 has no tags.
torch.library.define(
    "nft_ext::draw_key",
    "(Tensor like) -> Tensor",
    tags=(torch.Tag.nondeterministic_seeded, torch.Tag.pt2_compliant_tag),
)


@torch.library.register_fake("nft_ext::draw_key")
def _(like: torch.Tensor) -> torch.Tensor:
    return torch.empty((1, 2), dtype=torch.int64, device=like.device)


torch.library.define(
    "nft_ext::draw_keys",
    "(Tensor like, int count) -> Tensor[]",
    tags=(torch.Tag.nondeterministic_seeded, torch.Tag.pt2_compliant_tag),
)


@torch.library.register_fake("nft_ext::draw_keys")
def _(like: torch.Tensor, count: int) -> list[torch.Tensor]:
    return [torch.empty((1, 2), dtype=torch.int64, device=like.device) for _ in range(count)]


_draw_key, _draw_keys = torch.ops.nft_ext.draw_key.default, torch.ops.nft_ext.draw_keys.default


@torch.compiler.assume_constant_result
def _is_saved() -> bool:
    """Whether torch.compile saves what a random operator gave: only its default settings do."""
    here = traceback.current_meta.get("custom") or {}
    budget = min(config.activation_memory_budget, here.get("_region_activation_memory_budget", 1.0))
    return budget == 1.0 and config.ban_recompute_not_in_allowlist and not config.aggressive_recomputation


@torch.compiler.disable(
    reason="torch.compile would draw another key in the backward: leave activation_memory_budget at 1, or call the "
    "model inside nft_ext.chips"
)
def _drawn_outside(like: torch.Tensor) -> torch.Tensor:
    return _draw_key(like)


def fresh_key(like: torch.Tensor) -> torch.Tensor:
    """A key [1, 2] of the training domain, its seed drawn from the torch generator of `like`'s torch device.

    A compiled graph that would recompute the key in its backward breaks here: the key becomes an input of its rest.
    """
    if torch.compiler.is_compiling() and torch.is_grad_enabled() and not _is_saved():
        return _drawn_outside(like)
    return _draw_key(like)


def fresh_keys(like: torch.Tensor, count: int) -> list[torch.Tensor]:
    """`count` keys, int64 [1, 2] each, equal to those of `count` calls of `fresh_key`."""
    return _draw_keys(like, count)


def stream_of(name: str, taken: Iterable[int] = ()) -> int:
    """The 32-bit stream of the layer with this qualified name: its hash, independent of other layers.

    `taken` holds the streams of other layers. On a collision the name is extended and hashed again.
    """
    taken = set(taken)
    text = name
    while (stream := _hash(text)) in taken:
        text += "'"
    return stream


def settled_streams(names: Iterable[str], taken: Iterable[int] = ()) -> dict[str, int]:
    """name -> stream, all different. Collisions are settled in the order of the sorted names.

    So the streams depend on the names alone, not on the order of layers or calls.
    """
    taken, found = set(taken), {}
    for name in sorted(set(names)):
        found[name] = stream_of(name, taken)
        taken.add(found[name])
    return found


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2s(text.encode(), digest_size=4).digest(), "little")
