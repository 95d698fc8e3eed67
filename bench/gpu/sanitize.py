"""Stages `memcheck` and `racecheck`: NVIDIA's compute-sanitizer on this package's kernels (bench/gpu/small.py)."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench.gpu.child import NotHere, Task, Wrong
from bench.gpu.small import LAST_LINE, ONLY_OURS

ROOT = Path(__file__).resolve().parents[2]
SUMMARY = {"memcheck": r"ERROR SUMMARY: (\d+) error", "racecheck": r"RACECHECK SUMMARY: (\d+) hazard"}
REFUSED = (
    r"(Device not supported|Unable to find injection library|"
    r"Target application terminated before first instrumented API call)"
)
BROKEN = "Internal Sanitizer Error"
# racecheck fails in the library's gradients of convolutions (cuDNN and torch), which are not under test.
OPTIONS = {"memcheck": [], "racecheck": [ONLY_OURS]}
KEPT = 12  # lines of the first findings
SHARE = 0.7  # share of the stage's time for the cases; start and end need the rest


def tool() -> str:
    """The path of compute-sanitizer: on PATH, or in the toolkit's folder.

    Raises:
        NotHere: not found.
    """
    folder = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin"
    found = shutil.which("compute-sanitizer", path=os.pathsep.join([os.environ.get("PATH", ""), str(folder)]))
    if found is None:
        raise NotHere("compute-sanitizer was not found on PATH nor in the CUDA toolkit's bin folder")
    return found


def verdict(kind: str, text: str, status: int) -> dict[str, Any]:
    """The result of a run.

    Raises:
        NotHere: the tool does not support this machine.
        Wrong: an error or hazard was found, the tool failed, or the script did not end.
    """
    counts = [int(n) for n in re.findall(SUMMARY[kind], text)]
    findings = [line for line in text.splitlines() if line.startswith("=========")]
    if (refused := re.search(REFUSED, text)) is not None and not any(counts):
        raise NotHere(f"compute-sanitizer does not support this machine: {refused.group(1)}")
    shown = " ".join(line.strip("= ") for line in findings[:KEPT])
    if BROKEN in text:  # which its summary counts as a finding
        raise Wrong(f"compute-sanitizer itself failed: {shown}")
    if any(counts):
        raise Wrong(f"{kind} reports {sum(counts)}: {shown}")
    if status != 0 or not counts or LAST_LINE not in text:
        raise Wrong(f"the script did not end under {kind} (status {status}): {text.strip()[-500:]}")
    ran = next(line for line in reversed(text.splitlines()) if LAST_LINE in line).strip()
    what = "hazard" if kind == "racecheck" else "error"
    return {"findings": 0, "summary": f"no {what} in this package's kernels; {ran}"}


def only_ours(help_text: str) -> list[str]:
    """Options that restrict the tool to this package's kernels, by their namespace. Versions spell them differently.

    Empty if the tool has neither option: it then checks all kernels, including the libraries'.
    """
    return next(([option, "kns=nft"] for option in ("--kernel-name", "--kernel-regex") if option in help_text), [])


def run_tool(kind: str, task: Task) -> None:
    program = tool()
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
    help_text = subprocess.run([program, "--help"], **output).stdout
    command = [
        program,
        "--tool",
        kind,
        *only_ours(help_text),
        "--report-api-errors",
        "no",
        sys.executable,
        "-m",
        "bench.gpu.small",
        f"{SHARE * task.left():.0f}",
        *OPTIONS[kind],
    ]
    # Each tensor gets its own allocation, so that an access past its end is found. Products are this
    # package's.
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "NFT_EXT_ONE_PASS": "always"}
    done = subprocess.run(command, cwd=ROOT, env=environment, **output)
    print(done.stdout, flush=True)
    task.save(verdict(kind, done.stdout, done.returncode))
