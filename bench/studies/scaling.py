"""Is the cost model right? python -m bench.studies.scaling [CHECKPOINT --out FILE]

With a checkpoint: estimates several evaluations (`nft.estimate_cost`), runs them and compares; 20 % error is allowed.
Without: prints GPU hours for the paper's Figure 3, computed from counted products and the rates in ASSUMED.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import nft_ext as nft
from bench.harness import machine
from bench.harness.measure import Contention, warning
from nft_ext._common.progress import duration
from nft_ext.reproduce.panels import PANELS, SIGMAS
from nft_ext.training import load_model

BAR = 0.2
# Name -> arguments of monte_carlo: both protocols, one and many chips per pass, a fixed number and a target.
EVALUATIONS: dict[str, dict[str, Any]] = {
    "whole sets": {"runs": 6},
    "slices of 16, 800 chips": {"protocol": "stratified", "slice_images": 16, "runs": 800},
    "slices of 100, 300 chips": {"protocol": "stratified", "slice_images": 100, "runs": 300},
    "one chip a pass": {"protocol": "stratified", "slice_images": 16, "runs": 400, "chips_per_pass": 1},
    "target +- 0.4 points": {"protocol": "stratified", "target_ci": 0.004},
}


def check(model: nn.Module, data, options: dict[str, Any]) -> dict[str, Any]:
    """Estimated and measured seconds, and their ratio. The evaluation uses the slices of the estimate."""
    estimate = nft.estimate_cost(model, data, **options)
    sliced = {} if estimate.slice_images is None else {"slice_images": estimate.slice_images}
    began = time.perf_counter()
    report = nft.monte_carlo(model, data, progress=False, **(options | sliced))
    seconds = time.perf_counter() - began
    # With a target, scale to the chips that were needed: the model predicts time, not variance.
    expected = estimate.seconds_of(report.runs) - (estimate.preparing if sliced else 0.0)
    return {
        "estimate": estimate.to_dict(),
        "chips": report.runs,
        "expected_seconds": expected,
        "seconds": seconds,
        "ratio": seconds / expected,
    }


# ---- on paper


@dataclass(frozen=True)
class Assumed:
    """Assumed rates of one GPU for the extrapolation (not measured).

    products: FLOP/s reached by 32 x 32 networks in bfloat16, of some 10^15 at peak. step: seconds per training step
    beside its products (launches, optimizer). weights: weights programmed per second (docs of the design: 11 M in about
    20 us). chip: seconds per pass of an evaluation beside its products, captured in a graph.
    """

    products: float = 1e14
    step: float = 1e-3
    weights: float = 5e11
    chip: float = 1e-4


ASSUMED = Assumed()
TRAIN_IMAGES = {"mnist": 60_000, "cifar10": 50_000, "cifar100": 50_000, "tinyimagenet": 100_000}
CLASSES = {"mnist": 10, "cifar10": 10, "cifar100": 100, "tinyimagenet": 200}
EPOCHS, BATCH, TEST, RUNS = 200, 128, 10_000, 200
# Forwards with gradients per training step, and networks per panel (one per sigma for those that train with noise).
METHODS = {
    "vanilla": (1, 1),
    "noise": (1, len(SIGMAS) - 1),
    "control": (1, len(SIGMAS) - 1),
    "correctnet": (1, 1),
    "ovf": (4, len(SIGMAS) - 1),
    "irs": (1, len(SIGMAS) - 1),
}
EQUIVALENT_RUNS = 6.0  # whole sets for the interval of 200: 200 (n + X2/B2) / I at n = 50, X2/B2 = 250, I = 10,000


def products(panel: str) -> tuple[float, int]:
    """FLOP of one image's forward (two a multiply-add), and weights, of a panel's network at width 1."""
    network, dataset = PANELS[panel].model, PANELS[panel].dataset
    channels = 1 if dataset == "mnist" else 3
    model = nft.models.build(network, CLASSES[dataset], channels, 1.0).eval()
    count, weights = [0], 0

    def add(module: nn.Module, args: tuple, output: torch.Tensor) -> None:
        count[0] += 2 * module.weight[0].numel() * output[0].numel()

    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(add)
            weights += module.weight.numel()
    with torch.no_grad():
        model(torch.zeros(1, channels, 32, 32))
    return float(count[0]), weights


def figure3(assumed: Assumed = ASSUMED) -> dict[str, dict[str, float]]:
    """Panel -> GPU seconds of training, of the paper's evaluation and of the stratified one, and of the longest
    network.
    """
    found = {}
    for panel in [name for name in PANELS if not name.endswith("digits")]:
        flop, weights = products(panel)
        image = flop / assumed.products
        steps = EPOCHS * -(-TRAIN_IMAGES[PANELS[panel].dataset] // BATCH)
        program = weights / assumed.weights
        training = longest = points = 0.0
        for forwards, networks in METHODS.values():
            one = steps * (
                assumed.step + forwards * (3 * BATCH * image + 2 * program)
            )  # programmed in forward and backward
            training, longest = training + networks * one, max(longest, one)
            points += len(SIGMAS) if networks == 1 else networks
        whole = RUNS * (program + TEST * image + TEST / 2048 * assumed.chip)
        found[panel] = {
            "training": training,
            "longest": longest,
            "points": points,
            "full": points * whole,
            "stratified": points * whole * EQUIVALENT_RUNS / RUNS,
        }
    return found


def on_paper() -> str:
    """The tables, in Markdown."""
    rows, total = [], {"training": 0.0, "full": 0.0, "stratified": 0.0}
    found = figure3()
    lines = [
        "| panel | training, GPU hours | 200 whole sets per point, GPU hours | stratified, GPU hours |",
        "|---|---|---|---|",
    ]
    for panel, t in found.items():
        rows.append(f"| {panel} | {t['training'] / 3600:.1f} | {t['full'] / 3600:.2f} | {t['stratified'] / 3600:.3f} |")
        total = {name: total[name] + t[name] for name in total}
    lines += rows + [
        f"| all | {total['training'] / 3600:.0f} | {total['full'] / 3600:.1f} | {total['stratified'] / 3600:.2f} |",
        "",
    ]
    longest = max(t["longest"] for t in found.values())
    lines += ["| GPUs | training | evaluation, whole sets | evaluation, stratified |", "|---|---|---|---|"]
    for gpus in (1, 8, 64):
        lines.append(
            f"| {gpus} | {duration(max(total['training'] / gpus, longest))} | {duration(total['full'] / gpus)} | "
            f"{duration(total['stratified'] / gpus)} |"
        )
    flop, weights = products("resnet18-cifar10")
    point = RUNS * (weights / ASSUMED.weights + TEST * flop / ASSUMED.products + TEST / 2048 * ASSUMED.chip)
    lines += ["", "| GPUs | 1,000 ResNet-18 x 8 sigmas, whole sets | stratified |", "|---|---|---|"]
    for gpus in (1, 8, 64):
        lines.append(
            f"| {gpus} | {duration(8000 * point / gpus)} | {duration(8000 * point * EQUIVALENT_RUNS / RUNS / gpus)} |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs="?", help="a checkpoint of nft-ext train")
    parser.add_argument("--sigma", type=float, default=0.3)
    parser.add_argument("--dataset", default="mnist", choices=nft.data.NAMES)
    parser.add_argument("--data-dir", metavar="DIR")
    parser.add_argument("--out", type=machine.output, metavar="JSON")
    arguments = parser.parse_args()
    if arguments.checkpoint is None:
        print(on_paper())
        return 0
    model = nft.convert(load_model(arguments.checkpoint)[0], nft.NVMDevice(sigma=arguments.sigma)).eval()
    test = nft.data.load(arguments.dataset, arguments.data_dir)[1]
    results = {}
    with Contention() as contention:
        for name, options in EVALUATIONS.items():
            found = results[name] = check(model, (test.images, test.labels), options)
            print(
                f"{name:26s} expected {found['expected_seconds']:6.1f} s, took {found['seconds']:6.1f} s: "
                f"{found['ratio']:.2f}"
                f"{'' if abs(found['ratio'] - 1) <= BAR else '   OUTSIDE'}",
                flush=True,
            )
    if (said := warning(contention.share)) is not None:
        print(said)
    if arguments.out is not None:
        machine.record(arguments.out, "scaling", {"contention": contention.share, "bar": BAR, "results": results})
    return 0 if all(abs(found["ratio"] - 1) <= BAR for found in results.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
