"""Kills evaluations at random moments; nothing may be lost: python bench/studies/kills.py [--kills N] [--runs R]

A child process evaluates a small network on real digits with monte_carlo(resume=...). It is killed (SIGKILL) after a
random time and restarted until it ends by itself. Then the next evaluation begins, until N kills are done. After every
kill the file must keep all its lines. Every report must equal the uninterrupted one bit for bit, and its file must hold
every draw once. Otherwise the exit status is 1.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

if not __package__:  # started as a file: import from the checkout, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch
from torch import nn

import nft_ext as nft
from bench.harness import machine
from nft_ext._common.files import write_json
from nft_ext._common.progress import Progress


class Evaluation:
    """One evaluation, in a child process that can be killed."""

    def __init__(self, runs: int):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(1, 4, 5, stride=3), nn.ReLU(), nn.Flatten(), nn.Linear(400, 10))
        self.runs, self.model = runs, nft.convert(network, nft.NVMDevice(sigma=0.2))
        images = torch.utils.data.Subset(nft.data.load("digits", None)[1], range(100))
        self.data = tuple(torch.stack([torch.as_tensor(item[i]) for item in images]) for i in range(2))

    def start(self, journal: Path, report: Path) -> int:
        """Starts a child and returns its process id. A fork saves the imports; with one torch thread it is safe."""
        child = os.fork()
        if child:
            return child
        try:
            nft.monte_carlo(
                self.model, self.data, runs=self.runs, seed=1, chips_per_pass=2, progress=False, resume=journal
            ).to_json(report)
            os._exit(0)
        except BaseException as error:
            print(f"child: {error!r}", file=sys.stderr, flush=True)
            os._exit(1)


def wait(child: int, seconds: float) -> bool:
    """Whether the child ended by itself; otherwise it is killed. Raises RuntimeError if it failed."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            if status:
                raise RuntimeError(f"an evaluation failed, status {status}")
            return True
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1] == 0  # it may have just ended


def figures(report: Path) -> dict[str, Any]:
    return json.loads(report.read_text()) | {"seconds": None, "crc": None}


def draws_of(journal: Path) -> list[int]:
    """The draws in the complete lines of the file."""
    lines = journal.read_bytes().split(b"\n")[1:-1] if journal.exists() else []
    return [json.loads(line)["draw"] for line in lines]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench/studies/kills.py", description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100, metavar="N", help="number of kills")
    parser.add_argument("--runs", type=int, default=200, metavar="R", help="chips per evaluation")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random moments")
    parser.add_argument("--out", type=machine.output, metavar="FILE", help="write the results as JSON")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    facts = machine.header()
    evaluation, moments = Evaluation(options.runs), random.Random(options.seed)
    outcome = {
        "kills": 0,
        "evaluations": 0,
        "torn_lines": 0,
        "before_the_header": 0,
        "finished_runs_lost": 0,
        "runs_counted_twice": 0,
        "reports_that_differ": 0,
    }
    with tempfile.TemporaryDirectory() as name, Progress(options.kills, "kills", "kills") as progress:
        folder = Path(name)
        begun = time.monotonic()
        if not wait(evaluation.start(folder / "whole.jsonl", folder / "whole.json"), 600):
            raise RuntimeError("the uninterrupted evaluation took more than ten minutes")
        span = time.monotonic() - begun
        while outcome["kills"] < options.kills:
            journal, report = (folder / f"{outcome['evaluations']}.{kind}" for kind in ("jsonl", "json"))
            before: list[int] = []
            # After the last kill the evaluation may end.
            while not wait(
                evaluation.start(journal, report),
                moments.uniform(0, span / 2) if outcome["kills"] < options.kills else 600,
            ):
                outcome["kills"] += 1
                content = journal.read_bytes() if journal.exists() else b""
                outcome["torn_lines"] += not content.endswith(b"\n") and b"\n" in content
                outcome["before_the_header"] += b"\n" not in content
                now = draws_of(journal)
                outcome["finished_runs_lost"] += len(set(before) - set(now))
                before = now
                progress.update(1, f"{len(now)} of {options.runs} runs finished")
            outcome["evaluations"] += 1
            draws = draws_of(journal)
            outcome["finished_runs_lost"] += len(set(range(options.runs)) - set(draws))
            outcome["runs_counted_twice"] += len(draws) - len(set(draws))
            outcome["reports_that_differ"] += figures(report) != figures(folder / "whole.json")
    right = not any(outcome[key] for key in ("finished_runs_lost", "runs_counted_twice", "reports_that_differ"))
    command = f"python bench/studies/kills.py --kills {options.kills} --runs {options.runs} --seed {options.seed}"
    found = {"machine": facts, "command": command, "seconds_uninterrupted": span, **outcome, "nothing_lost": right}
    print(json.dumps({key: value for key, value in found.items() if key != "machine"}, indent=1))
    if options.out is not None:
        write_json(options.out, found)
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
