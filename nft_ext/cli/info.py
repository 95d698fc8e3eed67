"""nft-ext info: versions, compiled kernels and settings in use."""

from __future__ import annotations

import argparse
import json


def add_parser(commands) -> None:
    parser = commands.add_parser("info", help="show versions, compiled kernels and settings in use")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from nft_ext.ops.build_info import info

    facts = info()
    if arguments.json:
        print(json.dumps(facts, indent=2))
        return
    rows = [
        ("nft_ext", f"{facts['nft_ext']}, built with {facts['compiler']}"),
        ("torch", facts["torch"]),
        ("python, numpy", f"{facts['python']}, {facts['numpy']}"),
        (
            "CPU kernels",
            f"{facts['instruction_set']} in use; {facts['machine']} processor runs "
            f"{', '.join(facts['instruction_sets'])} (set NFT_EXT_CPU_ISA)",
        ),
        ("threads", str(facts["threads"])),
        ("bfloat16", f"on the CPU: {facts['bfloat16_on_cpu']}"),
        ("CUDA kernels", f"built for {facts['cuda_built_for']}" if facts["cuda_built_for"] else "not built"),
        ("CUDA", f"off: {facts['cuda_off']}" if facts["cuda_off"] else "on"),
        ("one pass", f"{facts['one_pass']}: which CUDA products are one-pass (set NFT_EXT_ONE_PASS)"),
    ]
    for name, value in rows:
        print(f"{name:<14} {value}")
