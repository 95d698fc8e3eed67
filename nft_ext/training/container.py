"""One safetensors file with tensors, JSON and a checksum: the format of checkpoints and training states."""

from __future__ import annotations

import json
from collections.abc import Mapping
from os import PathLike
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor

from nft_ext._common.checks import fail, file_path
from nft_ext._common.files import write_atomically
from nft_ext._common.tensor_hash import tensor_hash


def write_tensors(path: str | PathLike, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], format: str) -> None:
    """Writes the file atomically.

    Args:
        format: names the kind of file; `read_tensors` checks it.

    Raises:
        ValueError: meta is not JSON-able.
        OSError: the file cannot be written. An older file stays as it was.
    """
    # Cloned because safetensors refuses tensors that share memory.
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
        argument: the caller's name of the path, for error messages.
        path: the file.
        format: the kind of file that is required.
        expected: the kind of file in words, for error messages.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is short, corrupt, or of another format.
    """
    source = file_path(argument, path)
    if not source.is_file():
        fail(argument, f"must name {expected}; there is no such file", str(source), kind=FileNotFoundError)
    try:
        with safe_open(source, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (safe_open is not iterable)
    except OSError as error:
        fail(argument, f"must name {expected}", f"{source}: {error.strerror or error}")
    except SafetensorError as error:
        size = source.stat().st_size
        fail(argument, f"must name {expected}; this file is short or corrupt ({error})", f"{source}, {size} bytes")
    if header.get("format") != format:
        fail(argument, f"must name {expected}; this safetensors file is not one", str(source))
    if header.get("sha256") != _hash(tensors, header.get("meta", "")):
        fail(argument, f"must name {expected}; this file is corrupt (it does not match its checksum)", str(source))
    try:
        meta = json.loads(header.get("meta", ""))
    except (ValueError, RecursionError) as error:
        fail(argument, f"must name {expected}; its metadata are damaged ({error})", str(source))
    if not isinstance(meta, dict):
        fail(argument, f"must name {expected}; its metadata must be a JSON object", str(source))
    return tensors, meta


def _hash(tensors: Mapping[str, Tensor], meta: str) -> str:
    # safetensors has no checksum: a flipped bit would go unnoticed.
    return tensor_hash(sorted(tensors.items()), meta)
