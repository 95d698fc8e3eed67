"""Builds, tests and measures nft_ext on a CUDA machine: python bench/gpu_check.py --out DIR [--minutes 8]

Builds the package with CUDA if needed. Then each stage runs in its own process and within its own time.
DIR/gpu_check.json is written after every stage, so an interrupted run keeps its results. DIR/logs holds the output of
the stages. A short table ends the output. Exit status: 0 all correct, 1 a correctness stage failed or did not end, 2
no CUDA machine or bad options.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import math
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

if not __package__:  # started as a file: import from the checkout, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from bench.gpu import report, stages, targets
from bench.gpu.child import NOT_HERE_STATUS
from bench.gpu.stages import FAILED, LATE, NOT_RUN, PASSED, Outcome, Stage

ROOT = Path(__file__).resolve().parents[1]
# Least and most seconds per stage. The least ones add up to the default minutes. After a build of 100 s each stage has
# enough for an H100, except that the last two may omit their least important cases.
STAGES = (
    Stage("build", "the package with its CUDA library", 150, 240, True),
    Stage("facts", "GPU, driver, versions, architectures of the library", 6, 40, True),
    Stage("identity", "chips on CUDA equal the CPU's, bit for bit", 15, 60, True),
    Stage("marked", "pytest -m cuda", 70, 120, True),
    Stage("memcheck", "compute-sanitizer, memory accesses", 30, 60, True),
    Stage("racecheck", "compute-sanitizer, races in shared memory", 30, 60, True),
    Stage("ceilings", "copy bandwidth, product rates", 10, 30, False, True),
    Stage("one_pass", "one-pass products against library products", 15, 60, False, True),
    Stage("sampler", "programming ResNet-18's layers", 20, 50, False, True),
    Stage("layers", "convolution and linear layers, several rows per chip", 20, 60, False, True),
    Stage("gradients", "dL/dx of layers, weights programmed again, few rows per chip", 14, 45, False, True),
    Stage("network", "ResNet-18's forward at 1, 8, 32, 128 images", 40, 100, False, True),
    Stage("training", "an OVF training step, its time and memory", 60, 120, False, True),
)
MARGIN = 6.0  # seconds by which a measuring stage ends before its time is up
BUILD = [sys.executable, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "-e", str(ROOT)]
WHAT_TO_DO = (
    "run it on a machine with an NVIDIA GPU of compute capability 8.0 or later, its driver, the CUDA toolkit's nvcc "
    "and a CUDA build of torch >= 2.11; nothing was measured"
)


def why_no_cuda() -> str | None:
    """Why this machine cannot run the check, as a clause; None if it can."""
    try:
        import torch
    except ImportError as error:
        return f"torch cannot be imported ({error})"
    if torch.version.cuda is None:
        return f"the installed torch {torch.__version__} has no CUDA support"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no CUDA device"
    return None


def is_built() -> bool:
    """Whether both libraries exist for this Python and are not older than their sources."""
    package = ROOT / "nft_ext"
    made = [package / "_C.so", package / "_C_cuda.so", *package.glob(f"_core.{sys.implementation.cache_tag}*.so")]
    if len(made) < 3 or not all(p.exists() for p in made):
        return False
    sources = [p for p in (ROOT / "csrc").rglob("*") if p.is_file()] + [ROOT / "CMakeLists.txt", ROOT / "setup.py"]
    return min(p.stat().st_mtime for p in made) >= max(p.stat().st_mtime for p in sources)


def environment() -> dict[str, str]:
    """The stages' environment: the toolkit on PATH, this checkout first among modules, a build with CUDA."""
    modules = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    found = dict(os.environ) | {"NFT_EXT_CUDA": "1", "PYTHONPATH": modules}
    toolkit = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin"
    if shutil.which("nvcc") is None and toolkit.is_dir():
        found["PATH"] = os.pathsep.join([found.get("PATH", ""), str(toolkit)])
    return found


class Runner:
    """Runs a stage in a process and returns its outcome."""

    def __init__(self, out: Path, outcomes: dict[str, Outcome]) -> None:
        self.logs, self.outcomes = out / "logs", outcomes
        self.logs.mkdir(parents=True, exist_ok=True)

    def __call__(self, stage: Stage, seconds: float) -> Outcome:
        return self._build(seconds) if stage.name == "build" else self._child(stage, seconds)

    def _build(self, seconds: float) -> Outcome:
        if is_built():
            return Outcome(PASSED, found={"summary": "found built, newer than its sources"})
        status, tail = stages.run_process(BUILD, seconds, self.logs / "build.log", ROOT, environment())
        if status is None:
            return Outcome(LATE, why=f"the build took more than {seconds:.0f} s; see logs/build.log")
        if status != 0:
            return Outcome(FAILED, why=f"{' '.join(BUILD)} ended with status {status}: {tail.strip()[-800:]}")
        return Outcome(PASSED, found={"summary": "built"})

    def _child(self, stage: Stage, seconds: float) -> Outcome:
        with tempfile.TemporaryDirectory() as folder:
            saved, known = Path(folder) / "found.json", Path(folder) / "known.json"
            stages.write_json(known, {name: o.found for name, o in self.outcomes.items()})
            command = [
                sys.executable,
                "-m",
                "bench.gpu.child",
                stage.name,
                "--out",
                str(saved),
                "--known",
                str(known),
                "--seconds",
                str(max(1.0, seconds - MARGIN) if stage.measures else seconds),
            ]
            status, tail = stages.run_process(command, seconds, self.logs / f"{stage.name}.log", ROOT, environment())
            return ended(status, tail, seconds, stages.read_json(saved))


def ended(status: int | None, tail: str, seconds: float, found: Any) -> Outcome:
    """The outcome of a stage's process, with its saved results. status is None after a timeout."""
    if status is None:
        return Outcome(
            LATE, why=f"ended after {seconds:.0f} s" + ("; what it had is kept" if found else ""), found=found
        )
    if status == NOT_HERE_STATUS:
        return Outcome(NOT_RUN, why=last_line(tail), found=found)
    if status != 0:
        return Outcome(FAILED, why=last_line(tail) or f"ended with status {status} and said nothing", found=found)
    return Outcome(PASSED, found=found)


def last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench/gpu_check.py",
        description="Builds, tests and measures nft_ext on a CUDA machine.",
        epilog="stages: " + "; ".join(f"{s.name}: {s.what}" for s in STAGES),
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for gpu_check.json and logs; created if missing"
    )
    parser.add_argument("--minutes", type=float, default=8.0, help="time for all stages together (default 8)")
    parser.add_argument(
        "--skip", default="", metavar="STAGE,...", help="stages to skip; the table shows them as skipped"
    )
    found = parser.parse_args(argv)
    found.skip = {name.strip() for name in found.skip.split(",") if name.strip()}
    unknown = found.skip - {s.name for s in STAGES}
    if unknown:
        parser.error(
            f"--skip: must name stages among {', '.join(s.name for s in STAGES)}; got {', '.join(sorted(unknown))}"
        )
    if not (math.isfinite(found.minutes) and found.minutes > 0):
        parser.error(f"--minutes: must be > 0; got {found.minutes:g}")
    return found


def revision() -> str | None:
    """The checkout's commit; for a copy without git, NFT_EXT_COMMIT."""
    found = ""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["git", "rev-parse", "HEAD"]
        found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=10).stdout
    return found.strip() or os.environ.get("NFT_EXT_COMMIT") or None


def main(argv: list[str] | None = None) -> int:
    chosen = options(argv)
    if (why := why_no_cuda()) is not None:
        print(f"gpu_check: there is no CUDA machine here, because {why}: {WHAT_TO_DO}.", file=sys.stderr)
        return 2
    chosen.out.mkdir(parents=True, exist_ok=True)
    outcomes: dict[str, Outcome] = {}
    facts = {
        "command": "python bench/gpu_check.py " + " ".join(sys.argv[1:] if argv is None else argv),
        "commit": revision(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "minutes": chosen.minutes,
    }

    def save(so_far: dict[str, Outcome]) -> None:
        outcomes.update(so_far)
        stages.write_json(
            chosen.out / "gpu_check.json",
            facts
            | {
                "complete": len(outcomes) == len(STAGES),
                "unproven": stages.unproven([s for s in STAGES if s.name in outcomes], outcomes),
                "stages": {name: o.record() for name, o in outcomes.items()},
                "targets": targets.judged(outcomes),
            },
        )

    runner = Runner(chosen.out, outcomes)
    stages.run_stages(STAGES, chosen.skip, chosen.minutes, runner, save, lambda line: print(line, flush=True))
    print("\n" + report.text(STAGES, outcomes, targets.judged(outcomes)))
    unproven = stages.unproven(STAGES, outcomes)
    print(f"not proved: {', '.join(unproven)}" if unproven else "no correctness stage failed", flush=True)
    return 1 if unproven else 0


if __name__ == "__main__":
    sys.exit(main())
