"""Stage `sampler`: programming the crossbars of four ResNet-18s against the floor and against plain PyTorch.

The weights exceed the second-level cache. cached: steps and codes (ours) or the quantized weight (PyTorch) are kept
from an earlier call.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

import nft_ext as nft
from bench.gpu import plain, timing
from bench.gpu.child import Task
from bench.gpu.floors import Ceilings
from bench.harness import baselines, checks
from bench.harness.case import Ready, Variant, Work

NETWORKS = 4
NVM = {
    "one": nft.NVMDevice(sigma=baselines.SIGMA, sampling="fast"),
    "device": nft.NVMDevice(sigma=baselines.SIGMA, sampling="per_device"),
}
Sample = Callable[[], list[Tensor]]


@functools.cache
def weights() -> list[Tensor]:
    torch.manual_seed(0)
    networks = [nft.models.resnet18().cuda() for _ in range(NETWORKS)]
    return [p.detach() for net in networks for p in net.parameters() if p.dim() > 1]


def check(sample: Sample, precision: str) -> str | None:
    """Checks the noise of every weight, and that another call gives another chip."""
    for i, (chip, w) in enumerate(zip(sample(), weights(), strict=True)):
        found = checks.standard_normal(f"weight {i}", checks.weight_scores(chip.reshape(w.shape), w), precision)
        if found:
            return found
    return None


def ready(sample: Sample, precision: str, mode: str) -> Ready:
    run = timing.graphed(sample) if "graph" in mode else sample
    return Ready(run, lambda: check(run, precision))


def ours(draws: str, precision: str, mode: str, cached: bool, together: bool) -> Ready:
    """Layer by layer as in a forward, or all in one launch. The key is on the GPU, as in a captured step."""
    ops, nvm, dtype = torch.ops.nft_ext, NVM[draws], plain.DTYPES[precision]
    table, key = torch.from_numpy(nvm.operator_table()).cuda(), nft.noise_key(0, 1, device="cuda")
    spec, kept = nvm.operator_spec(), [(None, None)] * len(weights())
    if cached:
        steps = [ops.weight_step(w, nvm.weight_bits) for w in weights()]
        kept = [(ops.quantize(w, s, nvm.weight_bits), s) for w, s in zip(weights(), steps)]

    count = len(weights())
    codes, steps = [c for c, _ in kept], [s for _, s in kept] if cached else []

    @torch.no_grad()
    def sample() -> list[Tensor]:
        if together:
            return ops.program_many(
                weights(), codes, steps, [table] * count, key, list(range(count)), spec * count, [], dtype
            )
        return [ops.program(w, *layer, table, key, i, spec, dtype) for i, (w, layer) in enumerate(zip(weights(), kept))]

    return ready(sample, precision, mode)


def by_layer(draws: str, precision: str, mode: str) -> Ready:
    """In place, layer by layer, from the kept quantized weight."""
    kept = [
        (baselines.quantized(w, s).to(plain.DTYPES[precision]), float(s))
        for w in weights()
        for s in [baselines.step_of(w)]
    ]
    memory, part = ([torch.empty_like(w_d) for w_d, _ in kept] for _ in range(2))

    def sample() -> list[Tensor]:
        return [
            baselines.noise_(chip, step, draws, more).add_(w_d) for (w_d, step), chip, more in zip(kept, memory, part)
        ]

    return ready(sample, precision, mode)


def wholesale(draws: str, precision: str, mode: str) -> Ready:
    """All weights' noise at once, from the kept quantized weights."""
    all_at_once = plain.Wholesale(weights(), draws, plain.DTYPES[precision])
    if "compile" not in mode:
        return ready(all_at_once.program, precision, mode)
    function, sizes = torch.compile(all_at_once.functional), [w.numel() for w in weights()]
    return ready(lambda: list(function().split(sizes)), precision, mode)


def anew(draws: str, precision: str, mode: str) -> Ready:
    """As in training: abs-max, quantization and noise from the float weights."""

    def one(w: Tensor) -> Tensor:
        step = baselines.step_of(w)
        return baselines.noisy(baselines.quantized(w, step), step, draws).to(plain.DTYPES[precision])

    function = torch.compile(one, dynamic=True) if "compile" in mode else one
    flat = [w.reshape(-1) for w in weights()]
    return ready(lambda: [function(w) for w in flat], precision, mode)


def variants() -> list[Variant]:
    n = sum(p.numel() for p in weights())
    found = []

    def add(
        family: str,
        draws: str,
        precision: str,
        mode: str,
        make: Callable[..., Ready],
        *options,
        cached: bool = True,
        note: str = "",
    ) -> None:
        out = 2 if precision == "bf16" else 4
        # Read: our two-byte codes, the kept weight in the result's precision, or the float weight. Written: the
        # chip.
        read = 4 if not cached else 2 if family == "nft" else out
        work = Work(normals=n * baselines.NORMALS[draws], bytes=float(n * (read + out)))
        make = functools.partial(make, draws, precision, mode, *options)
        found.append(Variant(family, draws, make, work, precision, mode, cached, note))

    for precision in ("bf16", "fp32"):
        for draws in ("one", "device"):
            for mode in ("eager", "graph"):
                add("nft", draws, precision, mode, ours, True, False, note="layer by layer")
                add("nft", draws, precision, mode, ours, True, True, note="one launch")
                add("torch", draws, precision, mode, by_layer, note="layer by layer")
                add("torch", draws, precision, mode, wholesale, note="wholesale")
            add("torch", draws, precision, "compiled graph", wholesale, note="wholesale")
        for mode in ("eager", "graph"):
            add("nft", "one", precision, mode, ours, False, False, cached=False, note="layer by layer")
            add("nft", "one", precision, mode, ours, False, True, cached=False, note="one launch")
            add("torch", "one", precision, mode, anew, cached=False)
        add("torch", "one", precision, "compiled graph", anew, cached=False)
    return found


def run(task: Task) -> None:
    ceilings = Ceilings.of(task.found_by("ceilings"))
    n = sum(w.numel() for w in weights())
    case = timing.measure_case(
        "sampler", f"{NETWORKS} x ResNet-18's weights, {n / 1e6:.1f} M", variants(), ceilings, task
    )
    task.save({"cases": [case], "summary": f"{len(case['rows']) - len(case['failures'])} variants measured"})
