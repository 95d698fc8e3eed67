"""nft-ext tune: measures which way products shall take on this machine's CUDA device, and keeps the answer."""

from __future__ import annotations

import argparse


def add_parser(commands) -> None:
    parser = commands.add_parser("tune", help="measure fused against programmed products on a CUDA device")
    parser.add_argument("--device", type=int, default=0, metavar="N", help="CUDA device number (default 0)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    import torch

    from nft_ext.ops import build_info
    from nft_ext import tune
    from nft_ext._common.checks import fail, integer

    if build_info.cuda_failure is not None:
        raise ImportError(f"nothing to tune on this machine, because {build_info.cuda_failure}")
    count = torch.cuda.device_count()
    if count == 0:
        fail("--device", "must be a CUDA device, and torch sees none", arguments.device)
    index = integer("--device", arguments.device, 0, count - 1)
    bounds, records = tune.tune(index, lambda line: print(line, flush=True))
    print(f"wrote {tune.keep(index, bounds, records)}")
    return 0
