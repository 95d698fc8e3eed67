"""Tensors and JSON in one safetensors file with a checksum: what checkpoints and states of runs are kept in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor

from nft_ext._common.checks import fail
from nft_ext._common.files import write_atomically
from nft_ext._common.tensor_hash import tensor_hash


def write_tensors(path: str | PathLike, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], format: str) -> None:
    """Writes the file whole or not at all; `format` is the text that `read_tensors` asks for.

    Raises:
        ValueError: meta that is not JSON.
        OSError: it cannot be written; an older file stays.
    """
    # Cloned, because safetensors refuses tied weights.
    kept = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    try:
        text = json.dumps(dict(meta), allow_nan=False)
    except (TypeError, ValueError) as error:
        fail("meta", "must be JSON-able", str(error))
    header = {"format": format, "meta": text, "sha256": _hash(kept, text)}
    write_atomically(path, to_safetensors(kept, metadata=header))


def read_tensors(
    argument: str, path: str | PathLike, format: str, expected: str
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors (on the CPU) and the metadata of a file of that format.

    Args:
        argument: the caller's name of the path; expected: what the file should have been; both for error messages.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is short, corrupt, or of another format.
    """
    source = Path(path)
    if not source.is_file():
        fail(argument, f"must name {expected}; there is no such file", str(source), kind=FileNotFoundError)
    try:
        with safe_open(source, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        size = source.stat().st_size
        fail(argument, f"must name {expected}; this file is short or corrupt ({error})", f"{source}, {size} bytes")
    if header.get("format") != format:
        fail(argument, f"must name {expected}; this safetensors file is not one", str(source))
    if header.get("sha256") != _hash(tensors, header.get("meta", "")):
        fail(argument, f"must name {expected}; this file is corrupt (it does not match its checksum)", str(source))
    return tensors, json.loads(header["meta"])


def _hash(tensors: Mapping[str, Tensor], meta: str) -> str:
    # safetensors has no checksum of its own: a flipped bit would pass for a weight.
    return tensor_hash(sorted(tensors.items()), meta)
