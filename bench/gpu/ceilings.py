"""Stage `ceilings`: measures this GPU's bandwidth of a large copy and its rates of large products.

Products are in bfloat16 and in float32 with TF32, whose rate bounds float32 too.
"""

from __future__ import annotations

import statistics
import subprocess

import torch

from bench.gpu import timing
from bench.gpu.child import Task
from bench.gpu.floors import issue_rate

COPY_BYTES = 2 << 30
SIDE = {"bf16": 8192, "fp32": 8192}
DTYPE = {"bf16": torch.bfloat16, "fp32": torch.float32}


def highest_clock() -> float | None:
    """The highest clock of the multiprocessors in Hz, from nvidia-smi; None if unknown."""
    command = ["nvidia-smi", "--query-gpu=clocks.max.sm", "--format=csv,noheader,nounits", "-i", "0"]
    try:
        return 1e6 * float(
            subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.split()[0]
        )
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


def run(task: Task) -> None:
    torch.backends.cuda.matmul.allow_tf32 = True
    source = torch.randn(COPY_BYTES // 4, device="cuda")
    target = torch.empty_like(source)
    runs = {"copy": lambda: target.copy_(source)}
    for precision, side in SIDE.items():
        a, b = (torch.randn(side, side, device="cuda").to(DTYPE[precision]) for _ in range(2))
        runs[precision] = lambda a=a, b=b: torch.mm(a, b)
    found = dict(zip(runs, timing.interleaved(list(runs.values()), task.left)))
    seconds = {name: statistics.median(t.seconds) for name, t in found.items()}
    clock, device = highest_clock(), torch.cuda.get_device_properties(0)
    bandwidth = 2 * COPY_BYTES / seconds["copy"]
    rates = {p: 2 * side**3 / seconds[p] for p, side in SIDE.items()}
    task.save(
        {
            "copy_bytes_per_second": bandwidth,
            "flops_per_second": rates,
            "highest_clock_hz": clock,
            "instructions_per_second": issue_rate(device.multi_processor_count, clock),
            "summary": f"copy {bandwidth / 1e12:.2f} TB/s, products bf16 {rates['bf16'] / 1e12:.0f} and TF32 "
            f"{rates['fp32'] / 1e12:.0f} TFLOP/s",
        }
    )
