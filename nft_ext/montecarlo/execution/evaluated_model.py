"""The network under evaluation: its checks, its torch device, its eval mode and its devices."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from nft_ext._common.checks import fail, torch_device
from nft_ext.nn import NoisyLayer, check_noisy, noisy_layers
from nft_ext.nn.noise_free import unregistered
from nft_ext.nn.replaced import copied
from nft_ext.ops.functional import device_table


def check_model(model) -> None:
    """Checks the model.

    Raises:
        TypeError, ValueError: `model` is no module, has no noisy layer or one that is not registered, or has a weight
            that is not finite.
    """
    check_noisy(model)
    hidden = next(unregistered(model, lambda m: isinstance(m, NoisyLayer)), None)
    if hidden is not None:
        fail("model", "must hold its noisy layers in nn.ModuleList or nn.ModuleDict, not in plain lists", hidden)
    for name, value in model.state_dict().items():
        if torch.is_tensor(value) and value.is_meta:
            fail("model", "must have weights with values: load them, and remove offloading hooks", f"{name!r} on meta")
        if torch.is_tensor(value) and value.is_floating_point() and not value.isfinite().all():
            fail("model", "weights and statistics must be finite", f"NaN or inf in {name!r}")


def on_device(model: nn.Module, device: torch.device | str | None) -> tuple[nn.Module, torch.device]:
    """The model on `device`: itself if it is there or `device` is None, else a copy; and the torch device.

    Raises:
        ValueError: `device` is not available.
    """
    home = next(iter(noisy_layers(model).values())).anchor.device
    if device is None:
        return model, home
    torch_device("device", device)
    try:
        wanted = torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError) as error:
        fail("device", "must be an available torch device", f"{device!r} ({str(error).splitlines()[0]})")
    return (model, home) if wanted == home else (copied(model).to(wanted), wanted)


def check_sigma_is_known(model: nn.Module) -> None:
    """Refuses a sigma set by `nft.noise(model, sigma=...)`, because the report would name another sigma.

    Raises:
        ValueError: such a context is active.
    """
    for name, layer in noisy_layers(model).items():
        table_in_force = layer.noise_state()[0]
        if not torch.equal(table_in_force, device_table(layer.nvm, layer.anchor.device)):
            fail(
                "sigma",
                "must be given to monte_carlo itself, not by nft.noise around it",
                f"None, with another sigma active in {name!r}",
            )


@contextlib.contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Context with the model in eval mode. Restores every module's training flag at the end."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training


def devices_in_use(model: nn.Module, sigma: float | None) -> list[dict[str, Any]]:
    """The distinct devices of the noisy layers, for a report; with `sigma` if given."""
    layers_of: dict[Any, list[str]] = {}
    for name, layer in noisy_layers(model).items():
        nvm = layer.nvm if sigma is None else layer.nvm.replace(sigma=sigma)
        layers_of.setdefault(nvm, []).append(name)
    return [{"device": nvm.describe(), "text": str(nvm), "layers": names} for nvm, names in layers_of.items()]


def switched_off(model: nn.Module) -> list[str]:
    """Names of the noisy layers whose noise is switched off."""
    return [name for name, layer in noisy_layers(model).items() if not layer.noise_enabled]
