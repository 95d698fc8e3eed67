"""nft-ext reproduce: repeats a figure or table of the paper and prints it beside the published numbers."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path


def add_parser(commands) -> None:
    from nft_ext._common.bfloat16 import PRECISIONS
    from nft_ext.reproduce.as_published import SETTINGS
    from nft_ext.reproduce.grid import EXPERIMENTS
    from nft_ext.reproduce.panels import PANELS, PRESETS
    from nft_ext.reproduce.variants import FIGURE_METHODS

    parser = commands.add_parser(
        "reproduce",
        help="repeat a figure or table of the paper",
        description="Trains and measures every network of a figure or table of arXiv 2305.14561. Writes a table, a "
        "plot and a web page with our numbers beside the published ones. A finished network is never computed again: "
        "after an interrupt, run the same command.",
    )
    parser.add_argument("experiment", help=", ".join(EXPERIMENTS))
    parser.add_argument("--panel", help=f"network and data set: {', '.join(PANELS)} (default: the paper's)")
    parser.add_argument(
        "--preset", default="quick", help=f"size of the experiment: {', '.join(PRESETS)} (default quick)"
    )
    parser.add_argument(
        "--setting",
        default="published",
        help=f"of the training and its images, {' or '.join(SETTINGS)} (default published): start, normalisation, "
        "epoch kept, see docs/guide/reproduce.md",
    )
    parser.add_argument("--sigma", type=float, nargs="+", help="sigmas of the device (default: the preset's)")
    parser.add_argument(
        "--methods", nargs="+", metavar="METHOD", help=f"some of {', '.join(FIGURE_METHODS)} (default: the preset's)"
    )
    parser.add_argument(
        "--seeds", type=int, metavar="N", help="training seeds 0 .. N-1 (default: the preset's; convergence: 10)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("reproduce"),
        metavar="DIR",
        help="folder for the report and every network's results (default reproduce)",
    )
    parser.add_argument("--data-dir", metavar="DIR", help="folder of the published files (default: $NFT_EXT_DATA)")
    parser.add_argument("--device", metavar="TORCH_DEVICE", help="cpu or cuda (default cpu)")
    parser.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="processes that share the work and the cores (default 1)"
    )
    parser.add_argument(
        "--shard", metavar="I/N", help="do part I of N equal parts of the work, I = 1 .. N; one part per machine"
    )
    parser.add_argument("--keep-checkpoints", action="store_true", help="keep every network's weights")
    parser.add_argument("--dry-run", action="store_true", help="list the networks and estimate the time; train nothing")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads per process (default: torch's)")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--no-control", action="store_true", help="leave out the control networks of ovf and irs")
    group = parser.add_argument_group("replace single numbers of the preset", "Every result records the values used.")
    for name, kind, words in (
        ("width", float, "factor on all channel counts"),
        ("epochs", int, "passes over the training images"),
        ("lr", float, "learning rate at the start"),
        ("batch-size", int, "images per step"),
        ("train-images", int, "number of training images"),
        ("test-images", int, "number of test images"),
        ("runs", int, "chips per network and sigma"),
    ):
        group.add_argument(f"--{name}", type=kind, metavar="N" if kind is int else "X", help=words)
    group.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="precision of the training; bfloat16 is faster on processors that multiply it, see nft-ext info",
    )
    group.add_argument(
        "--channels-last",
        action="store_true",
        default=None,
        help="train with channels innermost in memory, often faster",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from nft_ext._common.checks import integer, one_of
    from nft_ext._common.files import check_writable_target
    from nft_ext.reproduce.as_published import in_setting
    from nft_ext.reproduce.grid import cells, searches
    from nft_ext.reproduce.panels import PRESETS
    from nft_ext.reproduce.store import Store

    a = arguments
    scale = in_setting(PRESETS[one_of("preset", a.preset, PRESETS)], a.setting).replace(
        width=a.width,
        epochs=a.epochs,
        lr=a.lr,
        batch_size=a.batch_size,
        train_images=a.train_images,
        test_images=a.test_images,
        runs=a.runs,
        precision=a.precision,
        channels_last=a.channels_last,
    )
    grid = cells(a.experiment, a.panel, scale, a.sigma, a.methods, a.seeds, not a.no_control)
    integer("--jobs", a.jobs, 1)
    mine = grid if a.shard is None else _shard(a.shard, grid)
    mine = [*searches(mine), *mine]  # a search comes first, so that several processes can share it
    if a.threads is not None:
        import torch

        torch.set_num_threads(integer("--threads", a.threads, 1))
    if a.dry_run:
        return _show(mine, a)
    from nft_ext.reproduce import run as grid_run
    from nft_ext.reproduce.work import sets

    sets(grid[0].panel, scale, a.data_dir)  # report missing data before any work
    store = Store(a.out)
    for suffix in ("txt", "csv", "json", "png", "html"):
        check_writable_target("--out", a.out / f"{a.experiment}.{suffix}")
    for cell in grid:
        store.read(cell)  # report a damaged result, too
    grid_run.interrupt_when_terminated()
    if a.jobs > 1 and not a.worker:
        status = grid_run.run_in_processes(a.jobs, sys.argv[1:])
    else:
        if a.worker:
            grid_run.be_a_worker()
        found = grid_run.run(mine, store, a.data_dir, a.device, False if a.worker else None, a.keep_checkpoints)
        status = grid_run.INTERRUPTED if found.interrupted else 0
        if a.worker:  # the parent process writes the report
            return status
    return _report(a, grid, store, status)


def _report(a: argparse.Namespace, grid: list, store, status: int) -> int:
    from nft_ext.reproduce.grid import searches

    found = [cell for cell in map(store.read, grid) if cell is not None]
    if len(found) < len(grid):
        print(f"{len(found)} of {len(grid)} networks are finished; run the same command again for the others")
    if others := store.others([*grid, *searches(grid)]):
        print(f"note: {store.cells} holds {others} results of other configurations; the report does not use them")
    if not found:
        return status
    from nft_ext.reproduce.report import write_report

    command = shlex.join(["nft-ext", *sys.argv[1:]])
    print(
        write_report(
            a.experiment,
            found,
            a.out,
            command,
            {"preset": a.preset, "setting": a.setting, "cells": len(grid), "finished": len(found)},
        )
    )
    return status


def _shard(text: str, grid: list) -> list:
    from nft_ext._common.checks import fail

    try:
        which, count = (int(part) for part in text.split("/"))
    except ValueError:
        fail("--shard", "must be I/N, two integers", text)
    if not 1 <= which <= count:
        fail("--shard", "must be I/N with 1 <= I <= N", text)
    return grid[which - 1 :: count]


def _show(grid: list, a: argparse.Namespace) -> int:
    from nft_ext._common.progress import duration
    from nft_ext.reproduce.estimate import seconds

    expected = seconds(grid, a.data_dir)
    finished = {path.stem for path in (a.out / "cells").glob("*.json")}
    left = sum(expected[cell.key] for cell in grid if cell.key not in finished)
    for cell in grid:
        print(f"{duration(expected[cell.key]):>9}  {cell}" + ("   (finished)" if cell.key in finished else ""))
    jobs = f", or {duration(left / a.jobs)} with {a.jobs} jobs on separate cores" if a.jobs > 1 else ""
    print(
        f"{len(grid)} networks, {sum(c.key in finished for c in grid)} finished; about {duration(left)} left on this "
        f"machine{jobs} (estimated from a few timed steps)"
    )
    return 0
