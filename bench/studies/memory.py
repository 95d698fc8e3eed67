"""How much memory do a conversion and one forward take? Peaks of a Llama-like bfloat16 network, one process per way.

python bench/studies/memory.py [--layers 12] [--width 1024] [--tokens 16] [--words 32000] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

if not __package__:  # started as a file: import from the checkout, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch

import nft_ext as nft
from bench.harness import machine
from bench.studies.networks import Decoder
from nft_ext._common.files import write_json

WAYS = ("plain", "in place", "copy")
LARGE = {"layers": 16, "width": 2048}  # 9.5e8 parameters


def peak() -> int:
    """The largest resident memory of this program so far, in bytes. getrusage's also counts the parent before exec."""
    with open("/proc/self/status") as file:
        return 1024 * next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))


def network(layers: int, width: int, words: int = 32000) -> Decoder:
    """The network in bfloat16, made without a float32 copy. The inner width is 2.75 times the width."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        return Decoder(layers, width, max(1, width // 64), width * 11 // 4, words).eval()
    finally:
        torch.set_default_dtype(before)


def sizes(layers: int, width: int, words: int = 32000) -> dict[str, int]:
    """Parameters and the largest crossbar, without making the network."""
    with torch.device("meta"):
        made = network(layers, width, words)
    matrices = [m.weight.numel() for m in made.modules() if isinstance(m, torch.nn.Linear)]
    return {"parameters": sum(p.numel() for p in made.parameters()), "largest": max(matrices)}


@torch.no_grad()
def measured(way: str, layers: int, width: int, tokens: int, words: int) -> dict[str, int]:
    """Bytes above the process's own after the network was made, converted, and run once on one chip."""
    # The libraries' own memory, and the pages that the first call of every operator touches.
    small = network(1, 64, 64)
    for warm in (small, nft.convert(small, nft.NVMDevice(sigma=0.1))):
        warm(torch.zeros(1, tokens, dtype=torch.int64))
    own = peak()
    model = network(layers, width, words)
    found = {"made": peak() - own}
    if way != "plain":
        model = nft.convert(model, nft.NVMDevice(sigma=0.1), inplace=way == "in place")
    found["converted"] = peak() - own
    model(torch.arange(tokens)[None] % words)
    return found | {"ran": peak() - own}


def study(layers: int, width: int, tokens: int, words: int) -> dict[str, Any]:
    """The peaks of all ways, each in a process of its own, and their ratios to the plain network's."""
    peaks = {}
    for way in WAYS:
        command = [sys.executable, __file__, "--way", way, "--layers", layers, "--width", width, "--tokens", tokens]
        command += ["--words", words]
        told = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True)
        peaks[way] = json.loads(told.stdout.splitlines()[-1])
    here, large = sizes(layers, width, words), sizes(**LARGE)
    ratio = peaks["in place"]["ran"] / peaks["plain"]["ran"]
    # What conversion and noise add: at most one programmed matrix, and the pool (csrc/cpu/torch/memory_pool.h).
    added = peaks["in place"]["ran"] - peaks["plain"]["ran"]
    scaled = added * large["largest"] / here["largest"]
    return {
        "machine": machine.header(),
        "network": {"layers": layers, "width": width, "tokens": tokens, **here},
        "peaks": peaks,
        "ratio": {way: peaks[way]["ran"] / peaks["plain"]["ran"] for way in WAYS},
        "extrapolated": {
            **large,
            "ratio": 1 + scaled / (peaks["plain"]["ran"] * large["parameters"] / here["parameters"]),
            "rule": "what is added grows as the largest matrix, the rest as the parameters",
        },
        "holds": ratio <= 1.3,
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench/studies/memory.py", description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--words", type=int, default=32000)
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)  # in a process of its own
    options = parser.parse_args(argv)
    size = options.layers, options.width, options.tokens, options.words
    if options.way is not None:
        print(json.dumps(measured(options.way, *size)))
        return 0
    found = study(*size)
    for way in WAYS:
        mebibytes = {when: round(size / 2**20) for when, size in found["peaks"][way].items()}
        print(f"{way:9s} {mebibytes} MiB, {found['ratio'][way]:.3f} of plain")
    large = found["extrapolated"]
    print(f"extrapolated to {large['parameters']:.2e} parameters: {large['ratio']:.3f}")
    if options.out is not None:
        write_json(options.out, found)
    return 0 if found["holds"] else 1


if __name__ == "__main__":
    sys.exit(main())
