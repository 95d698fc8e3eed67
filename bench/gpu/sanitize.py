"""Stages `memcheck` and `racecheck`: NVIDIA's compute-sanitizer on small shapes (bench/gpu/small.py), this package's kernels."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench.gpu.child import NotHere, Task, Wrong
from bench.gpu.small import LAST_LINE

ROOT = Path(__file__).resolve().parents[2]
SUMMARY = {"memcheck": r"ERROR SUMMARY: (\d+) error", "racecheck": r"RACECHECK SUMMARY: (\d+) hazard"}
REFUSED = (r"(Device not supported|Unable to find injection library|"
           r"Target application terminated before first instrumented API call)")
KEPT = 12  # lines of the first findings


def tool() -> str:
    """The path of compute-sanitizer: on PATH, or in the toolkit's folder.

    Raises:
        NotHere: it is in neither.
    """
    folder = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin"
    found = shutil.which("compute-sanitizer", path=os.pathsep.join([os.environ.get("PATH", ""), str(folder)]))
    if found is None:
        raise NotHere("compute-sanitizer was not found on PATH nor in the CUDA toolkit's bin folder")
    return found


def verdict(kind: str, text: str, status: int) -> dict[str, Any]:
    """What a run found.

    Raises:
        NotHere: the tool does not serve this machine. Wrong: an error or hazard; or the script did not come to its end, which is
            no proof either.
    """
    counts = [int(n) for n in re.findall(SUMMARY[kind], text)]
    findings = [line for line in text.splitlines() if line.startswith("=========")]
    if (refused := re.search(REFUSED, text)) is not None and not any(counts):
        raise NotHere(f"compute-sanitizer does not serve this machine: {refused.group(1)}")
    if any(counts):
        raise Wrong(f"{kind} reports {sum(counts)}: " + " ".join(line.strip("= ") for line in findings[:KEPT]))
    if status != 0 or not counts or LAST_LINE not in text:
        raise Wrong(f"the script did not come to its end under {kind} (status {status}): {text.strip()[-500:]}")
    return {"findings": 0, "summary": f"no {'hazard' if kind == 'racecheck' else 'error'} in this package's kernels"}


def run_tool(kind: str, task: Task) -> None:
    # The mangled names of this package's kernels hold its namespace: libraries' kernels are not what is checked here. Each
    # tensor gets memory of its own, so that an access past its end is past an allocation.
    command = [tool(), "--tool", kind, "--kernel-regex", "kns=nft", "--report-api-errors", "no", sys.executable, "-m",
               "bench.gpu.small"]
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          errors="replace")
    print(done.stdout, flush=True)
    task.save(verdict(kind, done.stdout, done.returncode))
