"""Sweeps over sigma for several networks and devices, on common chips."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from nft_ext._common.checks import fail, file_path, items, number
from nft_ext.device import NVMDevice
from nft_ext.montecarlo.common_chips import chips_apart
from nft_ext.montecarlo.evaluate import monte_carlo
from nft_ext.montecarlo.execution.evaluated_model import check_model
from nft_ext.montecarlo.execution.session import main_rank_makes, read_together
from nft_ext.montecarlo.sweep_result import Curve, Sweep
from nft_ext.nn import noisy_layers
from nft_ext.nn.conversion import convert
from nft_ext.nn.replaced import copied


def sweep(
    models: nn.Module | Mapping[str, nn.Module],
    data,
    sigmas: Sequence[float],
    devices: NVMDevice | Mapping[str, NVMDevice] | None = None,
    *,
    runs: int = 200,
    seed: int = 0,
    resume: str | os.PathLike | None = None,
    **options: Any,
) -> Sweep:
    """Evaluates every network on every device at every sigma, on common chips.

    All points use the chips 0 .. runs-1 of `seed`. Layers of the same name get the same normals for any weights, device
    and sigma. So two curves can be compared chip by chip (`Sweep.paired`). `Sweep.notes` names layers of other names.

    Args:
        models: a network, or name -> network. Converted (`nft.convert`), or plain if `devices` is given.
        data: as `monte_carlo` takes it; read once.
        sigmas: distinct values, in the unit of the devices. All devices must have the same unit.
        devices: a device, or name -> device, for all networks; their own sigmas are not used. None: each network's own
            device.
        runs, seed: as `monte_carlo` takes them.
        resume: a folder with one file per point, created if missing. A stopped sweep continues from it.
        options: further arguments of `monte_carlo`. slice_images="auto" is decided at the first point and kept.

    Returns:
        The points, evaluated sigma by sigma. An interrupt ends the sweep and returns the finished points. The last
        point is marked `interrupted` if it has at least two chips. Without any point the interrupt is raised again.

    Raises:
        TypeError, ValueError: before any chip is evaluated, for bad models, sigmas or devices; else as `monte_carlo`.
    """
    sigmas = _distinct("sigmas", [number("sigmas", sigma, 0.0) for sigma in items("sigmas", sigmas, "numbers")])
    curves = _curves(_named("models", models, nn.Module), devices)
    if "sigma" in options:
        fail("sigma", "must be given as sigmas", options["sigma"])
    files = _files(resume, curves, sigmas, options.get("ranks"))
    data = read_together(data, options.get("ranks"))
    found = Sweep(curves, notes=chips_apart({curve.name: curve.model for curve in curves}))
    for sigma in sigmas:
        for curve in curves:
            try:
                report = monte_carlo(
                    curve.model,
                    data,
                    runs=runs,
                    seed=seed,
                    sigma=sigma,
                    resume=files.get((curve.name, sigma)),
                    **options,
                )
            except KeyboardInterrupt:
                if not found.reports:
                    raise
                found.interrupted = True
                return found
            curve.reports.append(report)
            if report.slice_images is not None:
                options["slice_images"] = report.slice_images  # the same slices at every point
            if report.interrupted:
                found.interrupted = True
                return found
    return found


def _named(argument: str, given, kind: type) -> dict[str, Any]:
    """name -> object. A single object gets the name ""."""
    found = dict(given) if isinstance(given, Mapping) else {"": given}
    if not found:
        fail(argument, "must name at least one", "none")
    for name, value in found.items():
        if not isinstance(value, kind) or not isinstance(name, str):
            fail(
                argument,
                f"must be one {kind.__name__}, or a mapping from names to several",
                f"{name!r}: {type(value).__name__}",
                kind=TypeError,
            )
    return found


def _curves(models: dict[str, nn.Module], devices) -> list[Curve]:
    """One curve per network and device."""
    named = {"": None} if devices is None else _named("devices", devices, NVMDevice)
    curves = []
    for model_name, model in models.items():
        for device_name, device in named.items():
            placed = model if device is None else _on(model, device)
            check_model(placed)
            name = ", ".join(filter(None, (model_name, device_name))) or "network"
            curves.append(Curve(name, model_name, device_name, placed, []))
    devices = {layer.nvm for curve in curves for layer in noisy_layers(curve.model).values()}
    conventions = sorted({device.describe()["relative_to"] for device in devices})
    if len(conventions) > 1:
        fail("devices", "must have the same unit of sigma", f"sigma relative to {', '.join(conventions)}")
    return curves


def _on(model: nn.Module, device: NVMDevice) -> nn.Module:
    """A copy on `device`. A converted network keeps its noisy layers; of a plain one, all layers become noisy."""
    if not noisy_layers(model):
        return convert(model, device)
    model = copied(model)
    for layer in noisy_layers(model).values():
        enabled = layer.noise_enabled
        layer.attach(device, layer.name, layer.stream)
        layer.set_enabled(enabled)
    return model


def _distinct(argument: str, values: list) -> list:
    if not values or len(set(values)) < len(values):
        fail(argument, "must hold at least one value, each once", values)
    return values


def _files(resume, curves: list[Curve], sigmas: list[float], ranks: bool | None) -> dict[tuple[str, float], Path]:
    """(curve name, sigma) -> journal file. Creates the folder."""
    if resume is None:
        return {}
    folder = file_path("resume", resume)
    if folder.exists() and not folder.is_dir():
        fail("resume", "must be a folder, which holds one journal per point", str(folder))
    main_rank_makes(folder, ranks)
    files = {}
    for curve in curves:
        stem = "".join(c if c.isalnum() or c in "-_." else "_" for c in curve.name)
        for sigma in sigmas:
            file = folder / f"{stem}-sigma{sigma!r}.jsonl"
            if file in files.values():
                fail("models", "must have names that differ in letters and digits, for the names of files", curve.name)
            files[curve.name, sigma] = file
    return files
