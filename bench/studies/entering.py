"""The cost of a context: CPU time of entering and leaving `nft.chips`, against a forward of a MiniLM-shaped encoder.

python bench/studies/entering.py [--tokens 16] [--rounds 200] [--threads 1] [--out FILE]

Context, noisy forward and plain forward alternate in one process. CPU time counts, so other processes disturb little.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

if not __package__:  # started as a file: import from the checkout, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch

import nft_ext as nft
from bench.harness import machine
from bench.studies.networks import Encoder
from nft_ext._common.files import write_json

MOST = 0.02  # of a forward


def _seconds(work: Callable[[], Any]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


@torch.no_grad()
def study(tokens: int, rounds: int, chips: int = 1) -> dict[str, float]:
    """Median CPU seconds of a context, a noisy and a plain forward; and the context's shares of them."""
    torch.manual_seed(0)
    plain = Encoder().eval()
    noisy = nft.convert(plain, nft.NVMDevice(sigma=0.1))
    x = torch.randint(30000, (1, tokens))

    def enter() -> None:
        with nft.chips(noisy, draws=range(chips)):
            pass

    times: dict[str, list[float]] = {"context": [], "noisy": [], "plain": []}
    for number in range(rounds + 3):
        found = {"context": _seconds(enter)}
        with nft.chips(noisy, draws=range(chips)):
            found["noisy"] = _seconds(lambda: noisy(x))
        found["plain"] = _seconds(lambda: plain(x))
        if number >= 3:
            for name, seconds in found.items():
                times[name].append(seconds)
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    return medians | {
        "of_noisy": medians["context"] / medians["noisy"],
        "of_plain": medians["context"] / medians["plain"],
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench/studies/entering.py", description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="JSON file")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    found = {f"{chips} chips": study(options.tokens, options.rounds, chips) for chips in (1, 4)}
    for name, row in found.items():
        print(
            f"{name}: context {1e6 * row['context']:.0f} us, {100 * row['of_noisy']:.2f} % of the noisy forward, "
            f"{100 * row['of_plain']:.2f} % of the plain one"
        )
    if options.out is not None:
        write_json(options.out, {"machine": machine.header(), "tokens": options.tokens, "contexts": found})
    return 0 if all(row["of_noisy"] < MOST for row in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
