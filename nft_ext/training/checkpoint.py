"""Checkpoints: weights and JSON metadata in one safetensors file, never pickle. A write is atomic."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any

from torch import Tensor, nn

from nft_ext import models
from nft_ext._common.checks import fail, file_path, instance
from nft_ext._common.files import check_writable_target
from nft_ext._common.initialisation import init_of
from nft_ext.ops.build_info import facts
from nft_ext.training.container import read_tensors, write_tensors

FORMAT = "nft_ext checkpoint 1"
EXPECTED = "a checkpoint written by nft_ext (safetensors with nft_ext's metadata)"


def save(path: str | PathLike, model: nn.Module | Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Writes weights and metadata to `path`. An older file is replaced only when the new one is complete.

    Args:
        path: file to write, by convention `*.safetensors`.
        model: a plain module, or its state_dict.
        meta: anything JSON can hold. `load_model` needs `meta["model"]`, the arguments of
            `nft_ext.models.build`: name, num_classes, in_channels, width, and init unless it is "default".

    Raises:
        TypeError: path is no path, model is no module and no mapping, or meta is no mapping.
        ValueError: a state entry is not a tensor, meta is not JSON-able, or path is a folder.
        FileNotFoundError: the folder of `path` does not exist.
        OSError: the file cannot be written.
    """
    target = check_writable_target("path", file_path("path", path))
    if not isinstance(model, nn.Module):
        instance("model", model, Mapping, "a module or its state_dict")
    instance("meta", meta, Mapping, "a mapping")
    state = model.state_dict() if isinstance(model, nn.Module) else dict(model)
    for name, value in state.items():
        if not isinstance(value, Tensor):
            fail("model", f"must have a state_dict of tensors; {name!r}", type(value).__name__)
    write_tensors(target, state, meta, FORMAT)


def load(path: str | PathLike) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state_dict (on the CPU) and the metadata of the checkpoint at `path`.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is short, corrupt, or not an nft_ext checkpoint.
    """
    return read_tensors("path", path, FORMAT, EXPECTED)


def load_model(path: str | PathLike) -> tuple[nn.Module, dict[str, Any]]:
    """The plain model (in eval mode) and the metadata of the checkpoint at `path`.

    `nft_ext.models.build` rebuilds the model. `NVMDevice.described(meta["device"])` rebuilds the device that it was
    trained for; without a device, `meta["device"]` is None or missing.

    Raises:
        FileNotFoundError, ValueError: as `load`. Also if the metadata name no built-in model, or if the weights do not
            fit it.
    """
    state, meta = load(path)
    description = meta.get("model")
    if not isinstance(description, dict) or "name" not in description:
        rule = 'must describe its model in meta["model"]; nft_ext.load reads weights without one'
        fail("path", rule, str(path))
    try:
        model = models.build(**description)
    except (TypeError, ValueError) as error:
        fail("path", "must describe a built-in model of nft_ext", f"{path} ({error})")
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        fail("path", f"must hold the weights of the model it describes, {description}", f"{path} ({error})")
    return model.eval(), meta


def describe_model(model: nn.Module) -> dict[str, Any] | None:
    """The arguments of `nft_ext.models.build` that rebuild `model`, None if nft_ext did not build it."""
    name = type(model).__name__.lower()
    if not type(model).__module__.startswith(models.__name__ + ".") or name not in models.NAMES:
        return None
    # The usual start is not recorded, so older checkpoints and states keep their description.
    init = {} if init_of(model) == "default" else {"init": init_of(model)}
    sizes = {"num_classes": model.num_classes, "in_channels": model.in_channels, "width": model.width}
    return {"name": name, **sizes, **init}


def versions() -> dict[str, str]:
    """Versions a checkpoint records: nft_ext, torch, python."""
    return facts("nft_ext", "torch", "python")
