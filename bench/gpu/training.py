"""Stage `training`: time and peak memory of an OVF step (N = 3 feedbacks) of ResNet-18 at 128 images.

A step is forward, backward and SGD.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import nft_ext as nft
from bench.cpu.networks import _counts as counts
from bench.gpu import plain, timing
from bench.gpu.child import Task
from bench.gpu.floors import Ceilings
from bench.gpu.sampler import NVM
from bench.harness import autocast, baselines, checks
from bench.harness.case import Ready, Variant, Work
from nft_ext.methods.batchnorm import frozen_statistics
from nft_ext.methods.losses import gammas_noisiest_first_in_weight, total_output
from nft_ext.ops import build_info

CASES = {"bf16": "ovf-step", "fp32": "ovf-step-fp32"}
IMAGES, FEEDBACKS, BETA, RATE = 128, 3, 1e-3, 1e-3
# Share of a gradient's norm: it jumps if rounding changes a sign before a ReLU. On the CPU with 8 and 32 images, errors
# of 2e-5 of each layer's largest output (cuDNN, float32) change it by 9 %, errors of 1e-3 (bfloat16) by 60 %, and
# another chip by 150 %.
GRADIENT = {"fp32": 0.25, "bf16": 0.9}
METHOD = nft.methods.OVF(sigma=baselines.SIGMA, beta=BETA, feedbacks=FEEDBACKS)


@functools.cache
def data() -> tuple[Tensor, Tensor]:
    torch.manual_seed(2)
    x = torch.randn(IMAGES, 3, 32, 32).cuda().to(memory_format=torch.channels_last)
    return x, torch.randint(0, 10, (IMAGES,)).cuda()


def start() -> nn.Module:
    torch.manual_seed(0)
    return nft.models.resnet18().train().cuda()


class Step:
    """One training step: loss(), its backward, an SGD step."""

    def __init__(self, model: nn.Module, loss: Callable[[], Tensor], precision: str) -> None:
        self.model, self._loss, self.precision = model, loss, precision
        self.optimizer = torch.optim.SGD(model.parameters(), RATE)

    def loss(self) -> Tensor:
        with autocast.context(self.precision, "cuda"):
            return self._loss()

    def __call__(self) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss()
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def peak_bytes(self) -> int:
        """GPU memory during a step: the model's, and the additional peak."""
        self.optimizer.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        self()
        torch.cuda.synchronize()
        own = sum(t.nbytes for t in [*self.model.parameters(), *self.model.buffers()])
        taken = torch.cuda.max_memory_allocated() - before
        self.optimizer.zero_grad(set_to_none=True)
        return own + taken


def our_step(draws: str, precision: str, enabled: bool = True, compiled: bool = False) -> Step:
    model, (x, target) = METHOD.prepare(start(), NVM[draws]), data()
    if compiled:
        model.compile()

    def loss() -> Tensor:
        with nft.noise(model, enabled=enabled):
            return METHOD.loss(model, x, target)

    return Step(model, loss, precision)


def plain_step(draws: str, precision: str, compiled: bool = False) -> Step:
    scale = torch.ones((), device="cuda")
    model, (x, target) = plain.replaced(start(), lambda layer: plain.TrainedLayer(layer, draws, scale)), data()
    network = torch.compile(model) if compiled else model
    gammas = gammas_noisiest_first_in_weight(FEEDBACKS)

    def at(sigma: float) -> Tensor:
        scale.fill_(sigma / baselines.SIGMA)
        return network(x)

    def loss() -> Tensor:
        backbone = at(METHOD.sigma)
        with frozen_statistics(model, enabled=True):
            feedbacks = [at(sigma) for sigma in METHOD.sigmas()]
        return cross_entropy(total_output(backbone, feedbacks, BETA, gammas), target)

    return Step(model, loss, precision)


@functools.cache
def compiled_step(family: str, draws: str, precision: str) -> Step:
    """One compiled step for all modes, because compiling takes long."""
    return (our_step if family == "nft" else plain_step)(draws, precision, compiled=True)


def check(step: Step, quiet: Callable[[], Step] | None) -> str | None:
    """Checks loss and gradients without noise against plain PyTorch, and that noise leaves all gradients finite."""
    if quiet is not None:
        found, expected = quiet(), plain_step("none", step.precision)
        losses = []
        with timing.exact_float32():
            for s in (found, expected):
                losses.append(s.loss())
                losses[-1].backward()
        failure = checks.close("noise-free loss", *losses, step.precision, checks.WINOGRAD_DEEP[step.precision])
        if failure:
            return failure
        for (name, ours), theirs in zip(found.model.named_parameters(), expected.model.parameters(), strict=True):
            failure = checks.alike(f"noise-free gradient of {name}", ours.grad, theirs.grad, GRADIENT[step.precision])
            if failure is not None:
                return failure
    loss = step()
    silent = [name for name, p in step.model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    return (
        f"no finite gradient for {silent[0]}" if silent else None if loss.isfinite() else f"the loss is {float(loss)}"
    )


def ready(
    make: Callable[[], Step], mode: str, peaks: dict[str, int], name: str, quiet: Callable[[], Step] | None = None
) -> Ready:
    step = make()
    run = timing.graphed(step) if "graph" in mode else step

    def checked() -> str | None:
        failure = check(step, quiet)
        if failure is None and not (loss := run()).isfinite():
            failure = f"the loss is {float(loss)}"
        if failure is None and "graph" not in mode:
            peaks[name] = step.peak_bytes()
        return failure

    return Ready(run, checked)


def variants(precision: str, peaks: dict[str, int]) -> list[Variant]:
    """Compiled variants come last. With one normal per device, only the fastest ones."""
    weights, activations, products = counts()
    forwards, found = FEEDBACKS + 1, []

    def add(family: str, draws: str, mode: str) -> None:
        # Per forward, three products and their operands once; the weights and their gradients once.
        element = 2 if precision == "bf16" else 4
        work = Work(
            flops=6.0 * products * IMAGES * forwards,
            normals=baselines.NORMALS[draws] * weights * forwards,
            bytes=3.0 * element * activations * IMAGES * forwards + 12.0 * weights,
        )
        name = f"{family} {draws} {precision} {mode}"
        step = functools.partial(our_step if family == "nft" else plain_step, draws, precision)
        if "compile" in mode:
            step = functools.partial(compiled_step, family, draws, precision)
        quiet = functools.partial(our_step, draws, precision, False) if family == "nft" else None
        make = functools.partial(ready, step, mode, peaks, name, quiet)
        found.append(Variant(family, draws, make, work, precision, mode, True))

    for draws, modes in (("one", ("eager", "graph")), ("device", ("graph",))):
        for mode in modes:
            add("nft", draws, mode)
            add("torch", draws, mode)
    for family, mode in (
        (("torch", "compiled graph"), ("nft", "compiled graph"), ("torch", "compile")) if precision == "bf16" else ()
    ):
        add(family, "one", mode)
    return found


def memory_of(peaks: dict[str, int]) -> list[dict[str, Any]]:
    """Ours against plain PyTorch, one normal per weight, if both are known."""
    return [
        {"precision": p, "ours_bytes": peaks[f"nft one {p} eager"], "against_bytes": peaks[f"torch one {p} eager"]}
        for p in CASES
        if {f"nft one {p} eager", f"torch one {p} eager"} <= set(peaks)
    ]


def run(task: Task) -> None:
    ceilings = Ceilings.of(task.found_by("ceilings"))
    cases: list[dict[str, Any]] = []
    peaks: dict[str, int] = {}
    shape = f"OVF, N = {FEEDBACKS}, ResNet-18, {IMAGES} images, forward + backward + SGD"

    def save(cases: list[dict[str, Any]]) -> None:
        memory = memory_of(peaks)
        shown = "; ".join(
            f"peak memory {m['precision']} {m['ours_bytes'] / 2**20:.0f} MiB against "
            f"{m['against_bytes'] / 2**20:.0f} MiB"
            for m in memory
        )
        task.save(
            {"cases": cases, "one_pass": build_info.one_pass(), "peak_bytes": peaks, "memory": memory, "summary": shown}
        )

    for precision, name in CASES.items():
        cases.append(
            timing.measure_case(
                name, shape, variants(precision, peaks), ceilings, task, lambda case: save([*cases, case])
            )
        )
        save(cases)
