"""How much faster are two processes than one? python -m bench.studies.ranks CHECKPOINT [--out FILE]

Each process has one thread. Times are `report.seconds` of the evaluation, in interleaved rounds under torchrun, for
both protocols. The limit of the machine is shown beside: two independent processes, each with the whole evaluation.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

from bench.harness import machine
from bench.harness.measure import Contention, warning
from nft_ext.montecarlo import MonteCarloReport

PROTOCOLS = {
    "whole sets": ["--runs", "6"],
    "slices of 16 images": ["--protocol", "stratified", "--slice-images", "16", "--runs", "2000"],
}


def evaluate(checkpoint: Path, ranks: int, options: list[str]) -> MonteCarloReport:
    """One evaluation by `ranks` processes with one thread each."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            str(ranks),
            "-m",
            "nft_ext.cli",
            "evaluate",
            str(checkpoint),
            "--sigma",
            "0.3",
            "--out",
            folder,
            *options,
        ]
        done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
        [report] = Path(folder).glob("*.json")
        return MonteCarloReport.from_json(report)


def apart(checkpoint: Path, options: list[str]) -> float:
    """The longer time of two simultaneous evaluations in separate processes."""
    with ThreadPoolExecutor(2) as pool:
        return max(report.seconds for report in pool.map(lambda _: evaluate(checkpoint, 1, options), range(2)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="a checkpoint of nft-ext train")
    parser.add_argument("--dataset", default="mnist")
    parser.add_argument("--data-dir", metavar="DIR")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=machine.output, metavar="JSON")
    arguments = parser.parse_args()
    data = ["--dataset", arguments.dataset] + (["--data-dir", arguments.data_dir] if arguments.data_dir else [])
    results: dict[str, Any] = {}
    with Contention() as contention:
        for name, options in PROTOCOLS.items():
            seconds: dict[int, list[float]] = {1: [], 2: []}
            figures, both = set(), []
            for _ in range(arguments.rounds):
                for ranks, times in seconds.items():
                    report = evaluate(arguments.checkpoint, ranks, [*data, *options])
                    times.append(report.seconds)
                    figures.add(report.accuracy.mean)
                both.append(apart(arguments.checkpoint, [*data, *options]))
            speedup = median(seconds[1]) / median(seconds[2])
            limit = 2 * median(seconds[1]) / median(both)
            results[name] = {
                "seconds": seconds,
                "apart": both,
                "speedup": speedup,
                "limit": limit,
                "same_figures": len(figures) == 1,
            }
            print(
                f"{name:20s} 1 process {median(seconds[1]):.2f} s, 2 processes {median(seconds[2]):.2f} s: "
                f"{speedup:.2f}x; two independent {limit:.2f}x"
                f"{'' if len(figures) == 1 else '   FIGURES DIFFER'}",
                flush=True,
            )
    if (said := warning(contention.share)) is not None:
        print(said)
    if arguments.out is not None:
        machine.record(arguments.out, "ranks", {"contention": contention.share, "results": results})
    return 0 if all(result["same_figures"] for result in results.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
