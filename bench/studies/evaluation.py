"""The cost of the confidence of 200 whole-set runs: python -m bench.studies.evaluation CHECKPOINT --full REPORT ...

The target half-width is that of a report of 200 whole-set runs (nft-ext evaluate CHECKPOINT --runs 200 --out DIR). For
reports with fewer runs it is t(199) std / sqrt(200), with the std of six tilings of slices (3,750 chips on MNIST): few
runs may miss the rare bad chips that dominate the std. X2 in the formula comes from these six tilings too, because the
24 chips of a pilot are too few. Interleaved rounds, each with other chips, time:

  plain        one whole-set run in a simple PyTorch loop: rebuild the model, load the checkpoint, add torch.normal
               noise to every weight (one normal per weight, the exact std, no quantizer), images in batches of 128
  plain slice  one chip of our estimator in plain PyTorch: weights kept, noise drawn in place, one slice of images
  nft          one whole-set run of monte_carlo
  nft target   monte_carlo, protocol "stratified", until its 95 % half-width is that of the 200 runs, with its pilot

All passed images are counted, including pilots, probes and padding. The time of 200 plain runs is 200 times the median.
Chips and images of the target are means over the rounds, because they depend on the chips. Times are medians.
"""

from __future__ import annotations

import argparse
import functools
import math
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from torch import Tensor, nn

import nft_ext as nft
from bench.harness import machine
from bench.harness.measure import Contention, warning
from nft_ext.metrics.distributions import t_half_width
from nft_ext.montecarlo import MonteCarloReport
from nft_ext.training import load_model

RUNS = 200
LEAST_RUNS = 50
TILINGS, SLICE = 6, 16  # seed of the evaluation for the std and X2
PLAIN_BATCH = 128
STD = 0.7776  # std of the weight noise at M = 8, K = 2, in units of sigma max|W|
SLICES_TIMED = 50


class Plain:
    """Typical user code. checkpoint: a state_dict file of torch.save. build(): the untrained network."""

    def __init__(self, build: Callable[[], nn.Module], checkpoint: Path, sigma: float, images: Tensor, labels: Tensor):
        self.build, self.checkpoint, self.sigma, self.images, self.labels = build, checkpoint, sigma, images, labels
        self.kept = self._loaded()
        self.clean = [w.detach().clone() for w in self._weights(self.kept)]
        self.scale = [STD * sigma * float(w.abs().max()) for w in self.clean]
        self.noise = [torch.empty_like(w) for w in self.clean]

    def _loaded(self) -> nn.Module:
        model = self.build()
        model.load_state_dict(torch.load(self.checkpoint))
        return model.eval()

    @staticmethod
    def _weights(model: nn.Module) -> list[Tensor]:
        return [m.weight for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]

    @torch.no_grad()
    def whole(self) -> float:
        """Accuracy of one chip on all images."""
        model = self._loaded()
        for weight in self._weights(model):
            weight += torch.normal(0.0, STD * self.sigma * float(weight.abs().max()), weight.shape)
        right = 0
        for start in range(0, len(self.images), PLAIN_BATCH):
            batch = slice(start, start + PLAIN_BATCH)
            right += int((model(self.images[batch]).argmax(1) == self.labels[batch]).sum())
        return right / len(self.images)

    @torch.no_grad()
    def slices(self, n: int, chips: int) -> float:
        """Mean accuracy of `chips` chips on a slice of n images each."""
        order, right = torch.randperm(len(self.images)), 0
        for chip in range(chips):
            for weight, clean, noise, scale in zip(
                self._weights(self.kept), self.clean, self.noise, self.scale, strict=True
            ):
                torch.add(clean, noise.normal_(0.0, scale), out=weight)
            mine = order[chip * n % (len(order) - n) :][:n]
            right += int((self.kept(self.images[mine]).argmax(1) == self.labels[mine]).sum())
        return right / (n * chips)


def seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    """The wall time and the result of `call`."""
    started = time.perf_counter()
    found = call()
    return time.perf_counter() - started, found


def study(
    plain_model: nn.Module, full: MonteCarloReport, images: Tensor, labels: Tensor, rounds: int, seed: int
) -> dict[str, Any]:
    """All figures at the sigma of `full`, a report of whole-set runs of this network."""
    sigma, std = full.sigma, full.accuracy.std
    noisy = nft.convert(plain_model, nft.NVMDevice(sigma=sigma)).eval()
    many = nft.monte_carlo(
        noisy,
        (images, labels),
        protocol="stratified",
        slice_images=SLICE,
        runs=TILINGS * -(-len(images) // SLICE),
        seed=seed + 1000,
        progress=False,
    )
    if full.runs < RUNS:
        std = many.accuracy.std
    # Complete tilings: standard_error^2 = (B2 + k X2) / R.
    interaction = (many.accuracy.standard_error**2 * many.runs - many.accuracy.std**2) / (1 / SLICE - 1 / len(images))
    target = t_half_width(std / math.sqrt(RUNS), RUNS - 1)
    passed = [0]
    noisy.register_forward_pre_hook(lambda module, args: passed.__setitem__(0, passed[0] + len(args[0])))
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "weights.pt"
        torch.save(plain_model.state_dict(), checkpoint)
        width, channels, classes = plain_model.width, plain_model.in_channels, plain_model.num_classes
        plain = Plain(lambda: nft.models.vgg8(classes, channels, width), checkpoint, sigma, images, labels)
        times: dict[str, list[float]] = {name: [] for name in ("plain", "plain slices", "nft", "nft target")}
        accuracy: dict[str, list[float]] = {name: [] for name in times}
        reports: list[MonteCarloReport] = []
        all_passed: list[int] = []
        for round_ in range(rounds + 1):  # the first one warms up
            passed[0] = 0
            target_time, report = seconds(
                functools.partial(
                    nft.monte_carlo,
                    noisy,
                    (images, labels),
                    protocol="stratified",
                    target_ci=target,
                    seed=seed + round_,
                    progress=False,
                )
            )
            evaluated, n = passed[0], report.slice_images
            whole_time, whole = seconds(plain.whole)
            slice_time, sliced = seconds(functools.partial(plain.slices, n, SLICES_TIMED))
            nft_time, ours = seconds(
                lambda: nft.monte_carlo(noisy, (images, labels), runs=2, seed=seed, progress=False)
            )
            if round_ == 0:
                continue
            reports.append(report)
            all_passed.append(evaluated)
            chips = report.runs
            for name, spent, found in (
                ("plain", whole_time, whole),
                ("plain slices", chips * slice_time / SLICES_TIMED, sliced),
                ("nft", nft_time / 2, ours.accuracy.mean),
                ("nft target", target_time, report.accuracy.mean),
            ):
                times[name].append(spent)
                accuracy[name].append(found)
    t = {name: median(values) for name, values in times.items()}
    between = std**2

    def promise(n: int) -> float:
        """Images, for the variance B2 / 200."""
        return n * RUNS * (between + (1 / n - 1 / len(images)) * interaction) / between

    asked = RUNS * len(images)
    return {
        "sigma": sigma,
        "full": {"runs": full.runs, "mean": full.accuracy.mean, "std": full.accuracy.std},
        "std": std,
        "X2": interaction,
        "ci95_of_200": target,
        "stratified": [
            {
                "mean": r.accuracy.mean,
                "ci95": r.accuracy.ci95,
                "runs": r.runs,
                "slice_images": r.slice_images,
                "images_evaluated": r.images_evaluated,
                "images_passed": all_,
                "images_promised": promise(r.slice_images),
                "pilot": r.pilot,
            }
            for r, all_ in zip(reports, all_passed, strict=True)
        ],
        "images_factor": asked / mean(r.images_evaluated for r in reports),
        "images_factor_all": asked / mean(all_passed),
        "images_factor_promised": asked / mean(promise(r.slice_images) for r in reports),
        "seconds": times,
        "accuracy": accuracy,
        "wall_factor": RUNS * t["plain"] / t["nft target"],
        "estimator_wall_factor": RUNS * t["nft"] / t["nft target"],
        "engine_factor_whole_sets": t["plain"] / t["nft"],
        "engine_factor_slices": t["plain slices"] / t["nft target"],
        "plain_with_our_estimator_factor": RUNS * t["plain"] / t["plain slices"],
    }


def text(result: dict[str, Any]) -> str:
    """One sigma's figures."""
    full, ours, promised = result["full"], result["stratified"], result["images_factor_promised"]
    chips, sizes = mean(one["runs"] for one in ours), sorted({one["slice_images"] for one in ours})
    return (
        f"sigma {result['sigma']:g}: {full['runs']} whole-set runs {100 * full['mean']:.2f} %, "
        f"chip std {100 * result['std']:.2f}, of 200 +- {100 * result['ci95_of_200']:.3f}; "
        f"stratified {100 * mean(one['mean'] for one in ours):.2f} %, {chips:.0f} chips x "
        f"{' or '.join(map(str, sizes))} images (mean of {len(ours)} evaluations)\n"
        f"  images {result['images_factor']:.0f}x fewer ({result['images_factor_all']:.0f}x with pilot, probes and "
        f"padding); the formula promises {promised:.0f}x: {100 * result['images_factor'] / promised:.0f} %\n"
        f"  time {result['wall_factor']:.0f}x less than 200 plain runs = {result['engine_factor_whole_sets']:.2f}x "
        f"engine on whole sets x {result['estimator_wall_factor']:.0f}x estimator\n"
        f"  plain PyTorch with our estimator: {result['plain_with_our_estimator_factor']:.0f}x less; the engine is "
        f"{result['engine_factor_slices']:.2f}x faster than that"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="a VGG-8 checkpoint of nft-ext train")
    parser.add_argument("--full", type=Path, nargs="+", required=True, metavar="JSON", help="reports of whole-set runs")
    parser.add_argument("--dataset", default="mnist", choices=nft.data.NAMES)
    parser.add_argument("--data-dir", metavar="DIR")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the first stratified evaluation; each further one adds 1"
    )
    parser.add_argument("--out", type=machine.output, metavar="JSON")
    arguments = parser.parse_args()
    reports = [MonteCarloReport.from_json(path) for path in arguments.full]
    model = load_model(arguments.checkpoint)[0].eval()
    test = nft.data.load(arguments.dataset, arguments.data_dir)[1]
    for path, report in zip(arguments.full, reports, strict=True):
        if report.runs < LEAST_RUNS or report.slice_images is not None or report.images != len(test):
            sys.exit(
                f"--full: must be reports of at least {LEAST_RUNS} runs on all {len(test)} images; "
                f"got {path}: {report.runs} runs x {report.slice_images or report.images} images"
            )
    results: list[dict[str, Any]] = []
    with Contention() as contention:
        for report in reports:
            results.append(study(model, report, test.images, test.labels, arguments.rounds, arguments.seed))
            print(text(results[-1]), flush=True)
    if (said := warning(contention.share)) is not None:
        print(said)
    if arguments.out is not None:
        machine.record(arguments.out, "evaluation", {"contention": contention.share, "results": results})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
