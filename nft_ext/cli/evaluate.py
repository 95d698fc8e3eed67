"""nft-ext evaluate: Monte Carlo accuracy of a checkpoint over programmed chips."""

from __future__ import annotations

import argparse
from pathlib import Path

from nft_ext._common.bfloat16 import PRECISIONS
from nft_ext.cli import checkpoints, options, outputs


def add_parser(commands) -> None:
    parser = commands.add_parser(
        "evaluate",
        help="accuracy of a checkpoint over many programmed chips",
        description="Measures the accuracy of a checkpoint by Monte Carlo over programmed chips. Uses the "
        "checkpoint's data set, device and sigma. Override them with --dataset, --sigma and the device options.",
    )
    parser.add_argument("checkpoint", type=Path, help="file written by nft-ext train or demo")
    parser.add_argument("--sigma", type=float, nargs="+", help="one or several sigmas (default: the checkpoint's)")
    parser.add_argument(
        "--resume",
        type=Path,
        metavar="FILE",
        help="file for finished chips; an existing file is continued (one sigma only)",
    )
    parser.add_argument("--estimate", action="store_true", help="time a few passes and print the expected time first")
    parser.add_argument("--dry-run", action="store_true", help="time a few passes, print the expected time and stop")
    add_monte_carlo(parser)
    options.add_data(parser, checkpoints.DATA)
    options.add_device(parser, checkpoints.DEVICE)
    parser.set_defaults(run=run)


def add_monte_carlo(parser: argparse.ArgumentParser) -> None:
    """Adds the options that `settings` and `test_set` read, and --out."""
    group = add_chips(parser, runs=200)
    group.add_argument(
        "--target-ci",
        type=float,
        metavar="H",
        help="add chips until the half-width of the accuracy's 95 %% interval is at most H; 0.001 means 0.1 points",
    )
    group.add_argument(
        "--max-runs",
        type=int,
        default=20_000,
        metavar="N",
        help="largest number of chips, with --target-ci (default 20000)",
    )
    group.add_argument("--out", type=Path, metavar="DIR", help="folder for JSON, CSV and plots")


def add_chips(parser: argparse.ArgumentParser, runs: int):
    """Adds the options that `chip_settings` and `test_set` read. Returns their group.

    Args:
        runs: the default number of chips.
    """
    group = parser.add_argument_group("Monte Carlo")
    group.add_argument("--runs", type=int, default=runs, metavar="N", help=f"number of chips (default {runs})")
    group.add_argument("--seed", type=int, default=0, help="seed of the chips (default 0)")
    group.add_argument(
        "--protocol",
        choices=("full", "stratified"),
        default="full",
        help="each chip sees all test images (full, default) or a slice of them (stratified)",
    )
    group.add_argument(
        "--slice-images",
        type=_count,
        default="auto",
        metavar="N",
        help="images per slice, with --protocol stratified (default auto)",
    )
    group.add_argument("--limit", type=int, metavar="N", help="use only the first N test images")
    speed = parser.add_argument_group("speed")
    speed.add_argument("--device", metavar="TORCH_DEVICE", help="cpu or cuda (default cpu)")
    speed.add_argument("--batch-size", type=_count, default="auto", metavar="B", help="images per pass (default auto)")
    speed.add_argument(
        "--chips-per-pass", type=_count, default="auto", metavar="N", help="chips per pass (default auto)"
    )
    speed.add_argument(
        "--precision", choices=PRECISIONS, default="float32", help="precision of the products (default float32)"
    )
    return group


def settings(arguments: argparse.Namespace) -> dict:
    """The arguments of `monte_carlo`, from the options."""
    return chip_settings(arguments) | {"target_ci": arguments.target_ci, "max_runs": arguments.max_runs}


def chip_settings(arguments: argparse.Namespace) -> dict:
    """The arguments of `monte_carlo` for a given number of chips, from the options."""
    return {
        "runs": arguments.runs,
        "seed": arguments.seed,
        "device": arguments.device,
        "batch_size": arguments.batch_size,
        "chips_per_pass": arguments.chips_per_pass,
        "precision": arguments.precision,
        "protocol": arguments.protocol,
        "slice_images": arguments.slice_images,
    }


def test_set(arguments: argparse.Namespace, metas: checkpoints.Metas):
    """The test images, at most --limit of them, normalised as the checkpoints' training images were."""
    from nft_ext import data
    from nft_ext._common.checks import integer

    _, test = data.load(arguments.dataset, arguments.data_dir, checkpoints.normalisation_of(metas))
    if arguments.limit is not None:
        test = test.subset(range(min(integer("--limit", arguments.limit, 1), len(test))))
    return test


def run(arguments: argparse.Namespace) -> int:
    from nft_ext._common.checks import fail
    from nft_ext._common.processes import is_main
    from nft_ext.montecarlo import plot_sweep, sweep_table
    from nft_ext.nn.conversion import convert
    from nft_ext.training import load_model

    model, meta = load_model(arguments.checkpoint)
    metas = {arguments.checkpoint.stem: meta}
    arguments.dataset = checkpoints.dataset_of(arguments, metas)
    device = options.device_of(arguments, 0.0, checkpoints.device_left_open(arguments, metas))
    arguments.sigma = arguments.sigma or [checkpoints.sigma_left_open(arguments, meta, device)]
    if arguments.resume is not None and len(arguments.sigma) > 1:
        fail("--resume", "needs a single --sigma; use nft-ext sweep --resume DIR for several", str(arguments.resume))
    stems = _stems(arguments)
    noisy = convert(model, device.replace(sigma=arguments.sigma[0]))
    test, asked = test_set(arguments, metas), settings(arguments)
    if arguments.estimate or arguments.dry_run:
        slices = _estimate(noisy, test, arguments.sigma, asked)
        if len(arguments.sigma) == 1 and arguments.resume is None and slices is not None:
            asked["slice_images"] = slices  # run what was estimated; a resume file fixes its own size
        if arguments.dry_run:
            return 0
    reports = _reports(noisy, test, arguments.sigma, arguments.resume, asked)
    status = 130 if reports[-1].interrupted or len(reports) < len(arguments.sigma) else 0
    if not is_main():
        return status
    name = meta.get("method", {}).get("name", arguments.checkpoint.stem)
    print(sweep_table({name: reports}) if len(reports) > 1 else reports[0])
    if arguments.out is not None:
        written = list(zip(stems, reports, strict=False))  # an interrupt leaves fewer reports
        for stem, report in written:
            report.to_json(arguments.out / f"{stem}.json")
            report.to_csv(arguments.out / f"{stem}.csv")
        for stem, report in written:
            outputs.plotted(lambda stem=stem, report=report: report.plot(arguments.out / f"{stem}.png"))
        if len(reports) > 1:
            whole, title = f"{arguments.checkpoint.stem}.png", f"{arguments.checkpoint.stem} on {arguments.dataset}"
            outputs.plotted(lambda: plot_sweep({name: reports}, arguments.out / whole, title))
        print(f"wrote {arguments.out}")
    return status


def _stems(arguments: argparse.Namespace) -> list[str]:
    """The names of the output files, one per sigma, without suffix. Checks that all files can be written."""
    from nft_ext._common.checks import fail
    from nft_ext._common.files import number_in_name
    from nft_ext._common.processes import is_main

    if len(set(arguments.sigma)) < len(arguments.sigma):
        fail("--sigma", "must hold each value once", " ".join(map(str, arguments.sigma)))
    stems = [f"{arguments.checkpoint.stem}-sigma{number_in_name(sigma)}" for sigma in arguments.sigma]
    if arguments.out is not None and is_main() and not arguments.dry_run:
        names = [f"{stem}.{kind}" for stem in stems for kind in ("json", "csv", "png")]
        inputs = {"--table": arguments.table, "checkpoint": arguments.checkpoint, "--resume": arguments.resume}
        outputs.check_folder(arguments.out, [*names, f"{arguments.checkpoint.stem}.png"], inputs)
    return stems


def _reports(noisy, test, sigmas: list[float], resume: Path | None, asked: dict) -> list:
    """One report per sigma, on the same chips. After an interrupt, the reports so far.

    Each sigma chooses its own "auto" slice size. `sweep` uses one size, because it pairs models.
    """
    from nft_ext._common.checks import number
    from nft_ext.montecarlo import monte_carlo
    from nft_ext.montecarlo.execution.session import read_together

    sigmas = [number("--sigma", sigma, 0.0) for sigma in sigmas]
    reports, data = [], read_together(test, None)
    for sigma in sigmas:
        try:
            reports.append(monte_carlo(noisy, data, sigma=sigma, resume=resume, **asked))
        except KeyboardInterrupt:
            if not reports:
                raise
            break
        if reports[-1].interrupted:
            break
    return reports


def _estimate(noisy, test, sigmas: list[float], asked: dict) -> int | None:
    """Prints the expected time per sigma and in total.

    Returns:
        Images per slice at the last sigma, or None for the full protocol.
    """
    from nft_ext._common.processes import is_main
    from nft_ext._common.progress import duration
    from nft_ext.montecarlo import estimate_cost

    total, cost, slice_images = 0.0, None, None
    for sigma in sigmas:
        found = estimate_cost(noisy, test, sigma=sigma, cost=cost, **asked)
        cost, slice_images = found.cost, found.slice_images  # the passes are timed once: sigma does not change the time
        total += found.seconds
        if is_main():
            print(f"sigma {sigma:g}: {found}", flush=True)
    if is_main() and len(sigmas) > 1:
        print(f"all {len(sigmas)} sigmas: {duration(total)}", flush=True)
    return slice_images


def _count(text: str) -> int | str:
    """An integer, or the word auto."""
    try:
        return text if text == "auto" else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be an integer or auto; got {text}") from None
