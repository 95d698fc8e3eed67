"""Stage `network`: ResNet-18's forward at 32 x 32 without gradients, at 1, 8, 32 and 128 images.

Every call uses a new chip.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import nft_ext as nft
from bench.cpu.networks import _counts as counts
from bench.gpu import plain, timing
from bench.gpu.child import Task
from bench.gpu.floors import Ceilings
from bench.gpu.sampler import NVM
from bench.harness import baselines, checks
from bench.harness.case import Ready, Variant, Work
from nft_ext.montecarlo.execution.cuda_graphs import MonteCarloGraph
from nft_ext.ops import build_info

CASES = ((128, "bf16"), (1, "bf16"), (128, "fp32"), (32, "bf16"), (8, "bf16"), (1, "fp32"))  # the most important first
WHOLLY = (1, 128)  # for other numbers of images only the likely fastest are timed
ELEMENT = {"bf16": 2, "fp32": 4}
PRECISION = {"bf16": "bfloat16", "fp32": "float32"}  # MonteCarloGraph's names for the type of programmed weights
CALLS = 128  # their spread shows whether a compiled network has the noise of the eager one
Forward = Callable[[], Tensor]


@functools.cache
def clean() -> nn.Module:
    torch.manual_seed(0)
    return nft.models.resnet18().eval().requires_grad_(False).cuda()


@functools.cache
def images(count: int, precision: str, channels_last: bool) -> Tensor:
    torch.manual_seed(count)
    x = torch.randn(count, 3, 32, 32).cuda().to(plain.DTYPES[precision])
    return x.to(memory_format=torch.channels_last) if channels_last else x


@functools.cache
def noisy_network(draws: str) -> nn.Module:
    return nft.convert(clean(), NVM[draws])


@functools.cache
def fused_network(draws: str) -> nn.Module:
    return nft.fuse(noisy_network(draws))


@functools.cache
def plain_network(draws: str, precision: str, functional: bool, wholesale: bool) -> nn.Module:
    return plain.network(clean(), draws, precision, functional=functional, wholesale=wholesale)


@functools.cache
def compiled_network(draws: str, precision: str) -> Callable[[Tensor], Tensor]:
    # Per number of images: otherwise the second one is compiled for all numbers, and is slower.
    return torch.compile(plain_network(draws, precision, True, False), dynamic=False)


def forward(model: Callable[[Tensor], Tensor], x: Tensor) -> Forward:
    @torch.no_grad()
    def run() -> Tensor:
        return model(x)

    return run


def noise_of_layers(model: nn.Module, layers: list[nn.Module], x: Tensor, precision: str) -> str | None:
    """Checks that every layer has its noise."""
    found = checks.layer_scores(layers, forward(model, x))
    return checks.standard_normal(f"outputs of {len(layers)} layers", found, precision)


def a_logit(run: Forward) -> Tensor:
    """One logit in CALLS calls."""
    return torch.stack([run()[0, 0].double().clone() for _ in range(CALLS)])


@functools.cache
def eager_logit(model: nn.Module, x: Tensor) -> Tensor:
    """The same of a network that is called layer by layer: once for all its variants."""
    return a_logit(forward(model, x))


def as_noisy(what: str, run: Forward, model: nn.Module, x: Tensor) -> str | None:
    """Checks mean and spread of one logit over calls against `model`, within five standard errors."""
    found, expected = a_logit(run), eager_logit(model, x)
    error = float(expected.std()) / math.sqrt(CALLS / 2)
    ratio = float(found.std() / expected.std())
    if not abs(float(found.mean() - expected.mean())) <= checks.ERRORS * error:
        return f"{what}: the mean of a logit is {float(found.mean()):.4g}, not {float(expected.mean()):.4g}"
    if abs(ratio - 1) <= checks.ERRORS / math.sqrt(CALLS):
        return None
    return f"{what}: the spread of a logit is {ratio:.2f} of eager's"


def as_unfused(model: nn.Module, unfused: nn.Module, x: Tensor, precision: str) -> str | None:
    """Checks the logits on the same chip: after an epilogue, a layer's noise cannot be checked alone."""
    with nft.chips(model, seed=6), nft.chips(unfused, seed=6), timing.exact_float32():
        found, expected = forward(model, x)(), forward(unfused, x)()
    return checks.close("logits with fused epilogues", found, expected, precision, checks.WINOGRAD_DEEP[precision])


def as_eager(graph: MonteCarloGraph, model: nn.Module, x: Tensor) -> str | None:
    """Checks a replay's logits against `model` on the same chip, both as timed (float32 may be TF32)."""
    graph.key.copy_(nft.noise_key(6, 0, device=x.device))
    with nft.chips(model, seed=6):
        expected = forward(model, x)()
    return checks.close("replayed logits", graph.replay(), expected, "bf16")


def ours(count: int, draws: str, precision: str, mode: str, channels_last: bool, fused: bool = False) -> Ready:
    unfused, x = noisy_network(draws), images(count, precision, channels_last)
    model = fused_network(draws) if fused else unfused
    run = eager = forward(model, x)
    graph = (
        MonteCarloGraph(model, x, chips=1, precision=PRECISION[precision], programmed=mode == "programmed graph")
        if "graph" in mode
        else None
    )
    if graph is not None:

        def run() -> Tensor:
            graph.key[:, 1].add_(1)  # another chip
            return graph.replay()

    def check() -> str | None:
        # The quantized network in the same precision by plain PyTorch.
        with timing.exact_float32(), nft.noise(model, enabled=False):
            expected, quiet = forward(plain_network("none", precision, False, False), x)(), eager()
        factor = checks.WINOGRAD_DEEP[precision]
        return checks.first(
            checks.close("noise-free logits", quiet, expected, precision, factor),
            as_unfused(model, unfused, x, precision) if fused else None,
            noise_of_layers(unfused, list(nft.noisy_layers(unfused).values()), x, precision),
            as_eager(graph, unfused, x) if graph is not None else None,
            as_noisy(mode, run, unfused, x) if graph is not None else None,
        )

    return Ready(run, check)


def theirs(count: int, draws: str, precision: str, mode: str, wholesale: bool) -> Ready:
    x = images(count, precision, precision == "bf16")
    model = plain_network(draws, precision, False, wholesale)
    eager = forward(model, x)
    call = forward(compiled_network(draws, precision), x) if "compile" in mode else eager
    run = timing.graphed(call) if "graph" in mode else call
    layers = [m for m in model.modules() if isinstance(m, plain.Layer)]

    def check() -> str | None:
        if draws == "none":
            return checks.close("logits", run(), eager(), "bf16")  # other algorithms may use TF32
        return checks.first(
            noise_of_layers(model, layers, x, precision), as_noisy(mode, run, model, x) if run is not eager else None
        )

    return Ready(run, check)


def variants(count: int, precision: str) -> list[Variant]:
    weights, activations, products = counts()
    found = []

    def add(family: str, draws: str, mode: str, make: Callable[..., Ready], *options: bool, note: str = "") -> None:
        # Two-byte codes, and every product's input and output once. Noisy weights need no memory.
        work = Work(
            flops=2.0 * products * count,
            normals=baselines.NORMALS[draws] * weights,
            bytes=2.0 * weights + ELEMENT[precision] * activations * count,
        )
        make = functools.partial(make, count, draws, precision, mode, *options)
        found.append(Variant(family, draws, make, work, precision, mode, True, note))

    last, eager = precision == "bf16", ("eager",) if count in WHOLLY else ()
    for draws in ("one", "device"):
        for mode in (*eager, "graph", "programmed graph"):
            add("nft", draws, mode, ours, last, note="channels last" if last else "")
        for mode in ("graph", "programmed graph"):
            add("nft", draws, mode, ours, True, True, note="channels last, fused")
        for mode in (*eager, "graph"):
            add("torch", draws, mode, theirs, True, note="wholesale")
            if eager:
                add("torch", draws, mode, theirs, False, note="layer by layer")
    for mode in (*eager, "graph"):
        add("torch", "none", mode, theirs, False)
    for draws in ("one", "none", "device") if precision == "bf16" and count == 128 else ("one",):
        for mode in (*(("compile",) if eager else ()), "compiled graph"):
            add("torch", draws, mode, theirs, False)
    return found


def run(task: Task) -> None:
    ceilings = Ceilings.of(task.found_by("ceilings"))
    torch._dynamo.config.recompile_limit = 64  # beyond it torch silently runs eager code
    cases: list[dict[str, Any]] = []

    def save(cases: list[dict[str, Any]]) -> None:
        task.save({"cases": cases, "one_pass": build_info.one_pass(), "summary": f"{len(cases)} of {len(CASES)} sizes"})

    for count, precision in CASES:
        early = None if cases else lambda case: save([case])
        cases.append(
            timing.measure_case(
                f"resnet18-{count}-{precision}",
                f"ResNet-18, {count} x 3 x 32 x 32, forward",
                variants(count, precision),
                ceilings,
                task,
                early,
            )
        )
        save(cases)
