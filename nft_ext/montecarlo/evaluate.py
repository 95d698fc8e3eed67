"""Monte Carlo inference: what a network's accuracy is over chips programmed with it."""

from __future__ import annotations

import contextlib
import time

import torch
from torch import nn

from nft_ext.build_info import info
from nft_ext.checks import fail, integer, number
from nft_ext.contexts import noise
from nft_ext.keys import noise_key
from nft_ext.layers import noisy_layers
from nft_ext.montecarlo.chip_evaluator import ChipEvaluator
from nft_ext.montecarlo.collect import Collector
from nft_ext.montecarlo.images import check_label_range, read_data
from nft_ext.montecarlo.passes import Probe, chips_that_fit, probe, why_one_chip
from nft_ext.montecarlo.report import METRICS, MonteCarloReport, statistics_of
from nft_ext.montecarlo.subject import (
    check_model,
    check_sigma_is_known,
    devices_in_use,
    eval_mode,
    layers_without_noise,
    on_device,
)
from nft_ext.montecarlo.tallies import Tallies

MAX_RUNS = 2**31  # a draw has 32 bits; the padding of the last pass needs a few more than `runs`
PROTOCOLS = ("full",)
PRECISIONS = ("float32", "bfloat16")


def monte_carlo(
    model: nn.Module,
    data,
    *,
    runs: int = 200,
    seed: int = 0,
    sigma: float | None = None,
    protocol: str = "full",
    metrics: tuple[str, ...] = ("accuracy", "ekl"),
    chips_per_pass: int | str = "auto",
    batch_size: int = 256,
    device: torch.device | str | None = None,
    progress: bool | None = True,
    precision: str = "float32",
) -> MonteCarloReport:
    """Accuracy of `model` over `runs` programmed chips, each tested on the whole of `data`.

    Run r is chip draw = r of `seed` in the key domain "evaluation": its weights are those of
    `nft.program(model, seed=seed, draw=r)`, bit for bit, whatever chips_per_pass, batch_size and
    the number of threads are; its metrics are then equal up to the rounding of the products.
    The model is evaluated in eval mode and left as it was, training flags included.

    model: a converted model (`nft.convert`), inputs [B, ...] -> logits [B, C].
    data: DataLoader, map-style Dataset, or pair of tensors (inputs [n, ...], labels int [n]).
        Read once, and kept on the device where it takes at most half of the free memory.
        Floating-point inputs are cast to the dtype of the model's weights.
    runs: chips, >= 2. seed: 64 bits.
    sigma: overrides every layer's sigma (in the convention of its device); None keeps them, and
        refuses to run inside `nft.noise(model, sigma=...)`, which the report could not name.
    protocol: "full": every chip sees every image.
    metrics: per-run metrics to report, of "accuracy" (required), "ekl", "nll". The pooled
        calibration error is always there.
    chips_per_pass: chips that share a forward pass, or "auto": as many as keep chips * batch_size
        within 256 rows on a CPU, 4096 on a GPU, and a quarter of the free memory. The last pass is
        padded with further draws, whose results are dropped. More than one is used only if two
        chips in one pass give what two passes give (checked once; `report.notes` says if not).
    batch_size: images a pass.
    device: where to evaluate; a model that lives elsewhere is copied there. None: where it is.
    progress: True, False, or None for a terminal only.
    precision: "float32", or "bfloat16" for products under autocast (faster, and less exact).

    On KeyboardInterrupt the finished runs are reported, marked `interrupted`; below two finished
    runs the interrupt is passed on.

    Raises, before any chip is evaluated: TypeError or ValueError that names the argument, the rule
    and the value; a model without noisy layers, or with NaN or infinite weights, is among them.
    """
    runs = integer("runs", runs, 2, MAX_RUNS)
    batch_size = integer("batch_size", batch_size, 1)
    if chips_per_pass != "auto":
        chips_per_pass = min(runs, integer("chips_per_pass", chips_per_pass, 1))
    if sigma is not None:
        sigma = number("sigma", sigma, 0.0)
    noise_key(seed=seed, draws=[0], domain="evaluation")  # refuses a bad seed
    _one_of("protocol", protocol, PROTOCOLS)
    _one_of("precision", precision, PRECISIONS)
    metrics = _metric_names(metrics)
    check_model(model)
    if sigma is None:
        check_sigma_is_known(model)
    inputs, labels = read_data(data)
    model, device = on_device(model, device)

    label = "monte carlo" if sigma is None else f"monte carlo, sigma {sigma:g}"
    started = time.perf_counter()
    with contextlib.ExitStack() as stack:
        stack.enter_context(eval_mode(model))
        # no_grad, not inference_mode: what a layer caches of its weight must serve training later.
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"))
        stack.enter_context(noise(model, sigma=sigma))  # held throughout, so that the layers' codes are made once
        evaluator = ChipEvaluator(model, inputs, labels, seed, min(batch_size, len(labels)), device)
        found = probe(model, evaluator.logits, evaluator.inputs)
        check_label_range(labels, found.classes)
        per_pass, notes = _chips_per_pass(chips_per_pass, runs, evaluator, found, precision)
        collector = Collector(evaluator.tallies, per_pass, label, progress)
        tallies = collector.run(0, runs)
    if len(tallies) < 2:
        raise KeyboardInterrupt

    statistics = statistics_of(tallies, len(labels))
    notes += _notes(model, tallies, statistics, runs)
    return MonteCarloReport(
        statistics={name: statistics[name] for name in METRICS if name in metrics},
        ece=tallies.ece(),
        runs=len(tallies),
        images=len(labels),
        classes=found.classes,
        seed=int(seed),
        nvm=devices_in_use(model, sigma),
        protocol=protocol,
        precision=precision,
        chips_per_pass=per_pass,
        batch_size=evaluator.batch_size,
        hardware=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        seconds=time.perf_counter() - started,
        interrupted=collector.interrupted,
        notes=notes,
        versions=_versions(),
    )


def _chips_per_pass(
    asked: int | str, runs: int, evaluator: ChipEvaluator, found: Probe, precision: str
) -> tuple[int, list[str]]:
    """Chips a pass, and a note if the model does not allow as many as wanted."""
    wanted = asked
    if asked == "auto":
        largest_weight = max(layer.weight.numel() for layer in noisy_layers(evaluator.model).values())
        wanted = chips_that_fit(
            runs, evaluator.batch_size, found.row_bytes, 4 * largest_weight, evaluator.device
        )
    if wanted > 1:
        reason = why_one_chip(evaluator.logits, evaluator.inputs, precision)
        if reason is not None:
            return 1, [f"one chip a pass: {reason}"]
    return wanted, []


def _notes(model: nn.Module, tallies: Tallies, statistics: dict, runs: int) -> list[str]:
    """What a reader of the figures should know."""
    notes = []
    done = len(tallies)
    if done < runs:
        notes.append(f"interrupted after {done} of {runs} runs")
    quiet = layers_without_noise(model)
    if quiet:
        notes.append("computed without noise (not converted, or switched off): " + ", ".join(quiet))
    undefined = int(tallies.undefined.sum())
    if undefined:
        notes.append(
            f"{undefined} inferences gave NaN or infinite logits; they count as wrong, and are left "
            "out of the calibration error"
        )
    nothing_right = done - len(statistics["ekl"].values)
    if nothing_right:
        notes.append(f"{nothing_right} of {done} runs have nothing right, and so no EKL")
    return notes


def _one_of(argument: str, value, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        fail(argument, "must be " + " or ".join(map(repr, allowed)), value)


def _metric_names(metrics) -> set[str]:
    names = {metrics} if isinstance(metrics, str) else set(metrics)
    if "accuracy" not in names or not names <= set(METRICS):
        fail("metrics", f"must be names of {', '.join(METRICS)}, accuracy among them", sorted(map(str, names)))
    return names


def _versions() -> dict[str, str]:
    built = info()
    names = ("nft_ext", "torch", "numpy", "python", "compiler", "instruction_set")
    return {name: str(built[name]) for name in names}
