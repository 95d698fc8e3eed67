"""The network under evaluation: checked, on the right device, in eval mode, and left as it was."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from nft_ext._common.checks import fail
from nft_ext.nn import check_noisy, noisy_layers
from nft_ext.nn.noise_free import noise_free_layers
from nft_ext.ops.functional import device_table


def check_model(model) -> None:
    """Raises TypeError or ValueError if `model` has no noisy layer or a weight that is not finite."""
    check_noisy(model)
    for name, value in model.state_dict().items():
        if torch.is_tensor(value) and value.is_floating_point() and not value.isfinite().all():
            fail("model", "weights and statistics must be finite", f"NaN or inf in {name!r}")


def on_device(model: nn.Module, device: torch.device | str | None) -> tuple[nn.Module, torch.device]:
    """`model` itself if it lives on `device` (or None is given), else a copy there; and the device.

    Raises ValueError if `device` is no device that is present.
    """
    home = next(iter(noisy_layers(model).values())).weight.device
    if device is None:
        return model, home
    try:
        wanted = torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError) as error:
        fail("device", "must be a device that is present", f"{device!r} ({str(error).splitlines()[0]})")
    return (model, home) if wanted == home else (copy.deepcopy(model).to(wanted), wanted)


def check_sigma_is_known(model: nn.Module) -> None:
    """Raises ValueError inside `nft.noise(model, sigma=...)`: the report would name another sigma."""
    for name, layer in noisy_layers(model).items():
        table_in_force = layer.noise_state()[0]
        if not torch.equal(table_in_force, device_table(layer.nvm, layer.weight.device)):
            fail(
                "sigma",
                "must be given to monte_carlo itself, not by nft.noise around it",
                f"None, with another sigma in force in {name!r}",
            )


@contextlib.contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; outside, every module's own training flag again."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training


def devices_in_use(model: nn.Module, sigma: float | None) -> list[dict[str, Any]]:
    """The distinct device models of the noisy layers, `sigma` in force where given, for a report."""
    layers_of: dict[Any, list[str]] = {}
    for name, layer in noisy_layers(model).items():
        nvm = layer.nvm if sigma is None else layer.nvm.replace(sigma=sigma)
        layers_of.setdefault(nvm, []).append(name)
    return [{"device": nvm.describe(), "text": str(nvm), "layers": names} for nvm, names in layers_of.items()]


def layers_without_noise(model: nn.Module) -> list[str]:
    """Names of the layers with weights that are not noisy, or with their noise switched off."""
    quiet = {name for name, layer in noisy_layers(model).items() if not layer.noise_enabled} | set(
        noise_free_layers(model)
    )
    return [name for name, _ in model.named_modules() if name in quiet]
