"""Stage `network`: ResNet-18's forward at 32 x 32 without gradients, a new chip in every call, at 1, 8, 32 and 128 images."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

import nft_ext as nft
from bench import baselines, checks
from bench.case import Ready, Variant, Work
from bench.gpu import plain, timing
from bench.gpu.child import Task
from bench.gpu.floors import Ceilings
from bench.gpu.sampler import NVM
from bench.networks import _counts as counts
from nft_ext.cuda_graphs import MonteCarloGraph

CASES = ((128, "bf16"), (1, "bf16"), (32, "bf16"), (8, "bf16"), (128, "fp32"), (1, "fp32"), (32, "fp32"), (8, "fp32"))
ELEMENT = {"bf16": 2, "fp32": 4}
CALLS = 128  # whose spread tells whether a compiled network is as noisy as the eager one
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
def plain_network(draws: str, precision: str, functional: bool, wholesale: bool) -> nn.Module:
    return plain.network(clean(), draws, precision, functional=functional, wholesale=wholesale)


@functools.cache
def compiled_network(draws: str, precision: str) -> Callable[[Tensor], Tensor]:
    return torch.compile(plain_network(draws, precision, True, False))


def forward(model: Callable[[Tensor], Tensor], x: Tensor) -> Forward:
    @torch.no_grad()
    def run() -> Tensor:
        return model(x)

    return run


def noise_of_layers(model: nn.Module, layers: list[nn.Module], x: Tensor, precision: str) -> str | None:
    """Every layer carries its noise."""
    found = checks.layer_scores(model, layers, forward(model, x))
    return checks.standard_normal(f"outputs of {len(layers)} layers", found, precision)


def as_noisy(what: str, run: Forward, reference: Forward) -> str | None:
    """Mean and spread over calls of one logit are the reference's, within five standard errors."""
    found, expected = (torch.stack([f()[0, 0].double().clone() for _ in range(CALLS)]) for f in (run, reference))
    error = float(expected.std()) / math.sqrt(CALLS / 2)
    ratio = float(found.std() / expected.std())
    if not abs(float(found.mean() - expected.mean())) <= checks.ERRORS * error:
        return f"{what}: the mean of a logit is {float(found.mean()):.4g}, not {float(expected.mean()):.4g}"
    if abs(ratio - 1) <= checks.ERRORS / math.sqrt(CALLS):
        return None
    return f"{what}: the spread of a logit is {ratio:.2f} of eager's"


def ours(count: int, draws: str, precision: str, mode: str, channels_last: bool) -> Ready:
    model, x = noisy_network(draws), images(count, precision, channels_last)
    run = eager = forward(model, x)
    if "graph" in mode:
        graph = MonteCarloGraph(model, x, chips=1, programmed=mode == "programmed graph")

        def run() -> Tensor:
            graph.key[:, 1].add_(1)  # another chip
            return graph.replay()

    def check() -> str | None:
        # The quantized network in the same precision by plain PyTorch.
        with timing.exact_float32(), nft.noise(model, enabled=False):
            expected, quiet = forward(plain_network("none", precision, False, False), x)(), eager()
        return checks.first(checks.close("noise-free logits", quiet, expected, precision),
                            noise_of_layers(model, list(nft.noisy_layers(model).values()), x, precision),
                            as_noisy(mode, run, eager) if run is not eager else None)

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
        return checks.first(noise_of_layers(model, layers, x, precision),
                            as_noisy(mode, run, eager) if run is not eager else None)

    return Ready(run, check)


def variants(count: int, precision: str) -> list[Variant]:
    weights, activations, products = counts()
    found = []

    def add(family: str, draws: str, mode: str, make: Callable[..., Ready], option: bool, note: str = "") -> None:
        # Codes of two bytes, and every product's input and output once; noisy weights need not touch memory.
        work = Work(flops=2.0 * products * count, normals=baselines.NORMALS[draws] * weights,
                    bytes=2.0 * weights + ELEMENT[precision] * activations * count)
        make = functools.partial(make, count, draws, precision, mode, option)
        found.append(Variant(family, draws, make, work, precision, mode, True, note))

    layouts = (True, False) if precision == "bf16" else (False,)
    for draws in ("one", "device"):
        for mode in ("eager", "graph", "programmed graph"):
            for channels_last in layouts:
                add("nft", draws, mode, ours, channels_last, "channels last" if channels_last else "")
        for mode in ("eager", "graph"):
            add("torch", draws, mode, theirs, True, "wholesale")
            add("torch", draws, mode, theirs, False, "layer by layer")
    for mode in ("eager", "graph"):
        add("torch", "none", mode, theirs, False)
    for draws in ("one", "none", "device") if precision == "bf16" and count == 128 else ("one",):
        for mode in ("compile", "compiled graph"):
            add("torch", draws, mode, theirs, False)
    return found


def run(task: Task) -> None:
    ceilings = Ceilings.of(task.found_by("ceilings"))
    torch._dynamo.config.recompile_limit = 64  # beyond it torch would time eager in silence
    cases = []
    for count, precision in CASES:
        cases.append(timing.measure_case(f"resnet18-{count}-{precision}", f"ResNet-18, {count} x 3 x 32 x 32, forward",
                                         variants(count, precision), ceilings, task))
        task.save({"cases": cases, "summary": f"{len(cases)} of {len(CASES)} sizes"})
