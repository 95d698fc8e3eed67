"""Report `limits`: the sampler's distance from the limits of this machine, and the time of its parts.

The parts are measured by switching them off, on one core, with data in its second-level cache. The slope between two
sizes removes the cost of a call. The sampler writes to the layers' scratch memory, by a product with no rows.

    load codes, store       noise off, codes kept
    normals                 one normal per weight, minus the line above: Philox, Box-Muller, scaling by the table
    load, quantize, store   one normal per weight with a cached step, minus the normals
    Philox                  the extra time of stuck-at faults: one word per weight, and a comparison
    abs-max                 the step, without its cache (csrc/cpu/torch/abs_max_cache.h)

Limits: the time of the normals, divided by the threads, and the time to read every weight and write every result once
at the bandwidth of a large copy. The rest is threads that wait for each other, and data beyond the caches. A fresh
result costs more than scratch memory mostly because of page clearing.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

import nft_ext as nft
from bench.cpu import sampler
from bench.harness import measure
from nft_ext import _core
from nft_ext.ops import operators

SMALL, LARGE = (
    1 << 15,
    1 << 17,
)  # weights; the larger size and its result take one megabyte
COPY_BYTES = 64 << 20
STUCK = 1e-6  # so rare that nothing else changes

Run = Callable[[], Any]


def _program(weight: Tensor, nvm: nft.NVMDevice, *, kept: bool, noise: bool = True, step_known: bool = True) -> Run:
    """Programs `weight` [out, in] into scratch memory; kept: from codes."""
    ops, bits = operators.ops, nvm.weight_bits
    step = ops.weight_step(weight, bits)
    codes = ops.quantize(weight, step, bits) if kept else None
    table, key = torch.from_numpy(nvm.operator_table()), nft.noise_key(0, 1)
    spec, x = nvm.operator_spec(noise), weight.new_empty(0, weight.shape[1])
    step = step if step_known else None
    return lambda: ops.noisy_linear(x, weight, None, codes, step, table, key, 0, spec, True)


def _from_codes(weight: Tensor, nvm: nft.NVMDevice) -> Run:
    """Programs `weight` from codes into a fresh result."""
    ops, bits = operators.ops, nvm.weight_bits
    step = ops.weight_step(weight, bits)
    rest = (torch.from_numpy(nvm.operator_table()), nft.noise_key(0, 1), 0, nvm.operator_spec(), torch.float32)
    codes = ops.quantize(weight, step, bits)
    return lambda: ops.program(weight, codes, step, *rest)


def _pieces(n: int) -> dict[str, Run]:
    weight = torch.randn(64, n // 64)
    one, device = sampler.SAMPLING["one"], sampler.SAMPLING["device"]
    return {
        "load codes, store": _program(weight, one, kept=True, noise=False),
        "fresh": _program(weight, one, kept=False, step_known=False),
        "kept": _program(weight, one, kept=True),
        "device": _program(weight, device, kept=True),
        "stuck": _program(weight, device.replace(stuck=(STUCK, 0.0)), kept=True),
        "abs-max": lambda: operators.ops.weight_step(weight, one.weight_bits),
    }


def _slopes(small: dict[str, Run], large: dict[str, Run], sizes: tuple[int, int], rounds: int) -> dict[str, float]:
    """Nanoseconds per element, by name."""
    timings = measure.interleaved([*small.values(), *large.values()], rounds)
    per_name = zip(small, timings, timings[len(small) :])
    return {
        name: 1e9 * statistics.median(b - a for a, b in zip(low.seconds, high.seconds)) / (sizes[1] - sizes[0])
        for name, low, high in per_name
    }


def _per_core(rounds: int) -> dict[str, float]:
    """ns per weight on one core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        t = _slopes(_pieces(SMALL), _pieces(LARGE), (SMALL, LARGE), rounds)
    finally:
        torch.set_num_threads(threads)
    devices = sampler.DEVICE.devices
    philox = (t["stuck"] - t["device"]) / devices
    normals = t["kept"] - t["load codes, store"]
    return {
        "load codes, store": t["load codes, store"],
        "load, quantize, store": t["fresh"] - normals,
        "abs-max": t["abs-max"],
        "Philox": philox,
        "Box-Muller and scaling": normals - philox,
    }


def _per_isa(rounds: int) -> dict[str, float]:
    """ns per normal on one core, by instruction set (nft_ext._core.normals: Philox and Box-Muller alone)."""
    row = np.array([0, 1], np.int64)
    sizes = (1 << 12, 1 << 14)  # small results: no page is cleared

    def runs(n: int) -> dict[str, Run]:
        return {isa: lambda isa=isa: _core.normals(row, 0, 255, n, isa) for isa in _core.build()["instruction_sets"]}

    return _slopes(runs(sizes[0]), runs(sizes[1]), sizes, rounds)


def _whole(rounds: int) -> dict[str, measure.Timing]:
    """The whole sampler on all threads, and a large copy."""
    weights, nvm = sampler.weights(), sampler.SAMPLING["one"]
    tiny = torch.randn(1)

    def each(runs: list[Run]) -> Run:
        def run() -> None:
            for one in runs:
                one()

        return run

    source = torch.ones(COPY_BYTES // 4)
    target = torch.empty_like(source)
    flat = [w.flatten(1) for w in weights]
    runs = {
        "copy": lambda: target.copy_(source),
        "fresh": sampler._program("one").run,
        "kept": each([_from_codes(w, nvm) for w in weights]),
        "fresh, scratch": each([_program(w, nvm, kept=False, step_known=False) for w in flat]),
        "kept, scratch": each([_program(w, nvm, kept=True) for w in flat]),
        "fresh, calls": each([lambda: nft.program_weights(tiny, nvm, draws=1)] * len(weights)),
        "kept, calls": each([_program(tiny.view(1, 1), nvm, kept=True)] * len(weights)),
    }
    return dict(zip(runs, measure.interleaved(list(runs.values()), rounds)))


def _account(
    kind: str, whole: dict[str, measure.Timing], core: dict[str, float], weights: int, threads: int, bandwidth: float
) -> dict[str, Any]:
    """Milliseconds of the sampler with codes fresh or kept, piece by piece."""
    ms = {name: timing.median * 1e3 for name, timing in whole.items()}
    unused = ("abs-max", "load, quantize, store" if kind == "kept" else "load codes, store")
    share = {name: 1e-6 * weights * ns / threads for name, ns in core.items() if name not in unused}
    in_bytes = 2 if kind == "kept" else 4
    limits = {
        "normals": share["Philox"] + share["Box-Muller and scaling"],
        "memory": 1e3 * (in_bytes + 4) * weights / bandwidth,
    }
    scratch, calls = ms[f"{kind}, scratch"], ms[f"{kind}, calls"]
    spent = share | {
        "operator calls": calls,
        "threads and caches": scratch - calls - sum(share.values()),
        "fresh results": ms[kind] - scratch,
    }
    return {
        "ms": ms[kind],
        "page_faults": whole[kind].page_faults,
        "spent_ms": spent,
        "limits_ms": limits,
        "times_the_limit": ms[kind] / max(limits.values()),
    }


def report(rounds: int) -> dict[str, Any]:
    """All figures, as JSON types."""
    threads = torch.get_num_threads()
    weights = sum(w.numel() for w in sampler.weights())
    core, isa, whole = _per_core(rounds), _per_isa(rounds), _whole(rounds)
    bandwidth = 2 * COPY_BYTES / whole["copy"].median
    return {
        "copy_bytes_per_second": bandwidth,
        "threads": threads,
        "ns_a_weight_one_core": core,
        "ns_a_normal_one_core": isa,
        "sampler": {kind: _account(kind, whole, core, weights, threads, bandwidth) for kind in ("fresh", "kept")},
    }


def text(found: dict[str, Any]) -> str:
    lines = [
        f"copy bandwidth (read + write, {found['threads']} threads): {found['copy_bytes_per_second'] / 1e9:.1f} GB/s",
        "ns per normal, one core: " + ", ".join(f"{k} {v:.2f}" for k, v in found["ns_a_normal_one_core"].items()),
        "ns per weight, one core: " + ", ".join(f"{k} {v:.2f}" for k, v in found["ns_a_weight_one_core"].items()),
    ]
    for kind, a in found["sampler"].items():
        limits = ", ".join(f"{k} {v:.2f}" for k, v in a["limits_ms"].items())
        lines.append(
            f"ResNet-18's weights, codes {kind}: {a['ms']:.2f} ms = {a['times_the_limit']:.2f} times the limit "
            f"(ms: {limits}), {a['page_faults']:.0f} page faults"
        )
        lines += [f"    {name:24s}{v:8.2f} ms {100 * v / a['ms']:6.1f} %" for name, v in a["spent_ms"].items()]
    return "\n".join(lines)
