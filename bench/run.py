"""Benchmarks nft_ext against plain PyTorch: python bench/run.py [--list] [--only PATTERN] [--out FILE] ..."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

if not __package__:  # started as a file: import from the checkout, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from bench.cpu import limits
from bench.harness import machine, measure, registry, table
from bench.harness.case import Case
from nft_ext._common.files import check_writable_target, write_json
from nft_ext._common.progress import Progress


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench/run.py", description="Benchmarks nft_ext against the best plain PyTorch."
    )
    parser.add_argument("--list", action="store_true", help="list the cases and their variants without running them")
    parser.add_argument("--only", metavar="PATTERN", help="names, parts of names or globs, separated by commas")
    parser.add_argument("--out", metavar="FILE", type=Path, help="write all results as JSON")
    parser.add_argument(
        "--rounds", metavar="N", type=int, help="interleaved rounds per case (default: 9 to 15, set by the case)"
    )
    parser.add_argument("--no-compile", action="store_true", help="skip compiled variants: compiling takes minutes")
    parser.add_argument(
        "--precision",
        choices=("fp32", "bf16"),
        help="run only this precision: bf16 takes minutes per call on processors without it",
    )
    parser.add_argument("--threads", metavar="N", type=int, help="threads of torch and of nft_ext (default: torch's)")
    parser.add_argument(
        "--malloc",
        choices=("default", "keep"),
        default="default",
        help="keep: glibc keeps freed memory, which avoids page clearing (default: as the system does)",
    )
    options = parser.parse_args(argv)
    for name in ("rounds", "threads"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            parser.error(f"--{name}: must be an integer >= 1; got {getattr(options, name)}")
    try:
        if options.out is not None:
            check_writable_target("--out", options.out)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    return options


def _variants(case: Case, options: argparse.Namespace) -> list:
    return [
        v
        for v in case.variants
        if not (options.no_compile and v.mode == "compile") and options.precision in (None, v.precision)
    ]


def _print_list(chosen: list[Case], reports: list[str], options: argparse.Namespace) -> None:
    for case in chosen:
        print(f"{case.name}: {case.shape}")
        for variant in _variants(case, options):
            print(f"    {variant.name}")
    for name in reports:
        print(f"{name}: the machine's limits, the sampler's distance from them and the time of its parts")
    for target in registry.TARGETS:
        if any(target.case == c.name for c in chosen):
            print(f"target: {target.case}: {target.rule}, >= {target.at_least:g}x")


def _run_case(case: Case, options: argparse.Namespace, title: str) -> measure.Measured:
    variants = _variants(case, options)
    rounds = options.rounds or case.rounds
    if not options.no_compile:
        torch.compiler.reset()
        # All variants of a case compile the same source lines. Beyond torch's default limit it would run eager code.
        torch._dynamo.config.recompile_limit = 64
        torch._dynamo.config.fail_on_recompile_limit_hit = True
    with Progress(len(variants) + rounds, title, "steps") as progress:
        return measure.measure(variants, rounds, lambda note: progress.update(1, note))


def _warn(contention: float | None) -> None:
    if (text := measure.warning(contention)) is not None:
        print("  " + text, flush=True)


def main(argv: list[str] | None = None) -> int:
    options = _options(argv)
    try:
        chosen, reports = registry.select(options.only)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if options.list:
        _print_list(chosen, reports, options)
        return 0
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    if options.malloc == "keep":
        machine.keep_freed_memory()
    facts = machine.header() | {"malloc": options.malloc}
    command = "python bench/run.py " + " ".join(sys.argv[1:] if argv is None else argv)
    found: dict[str, Any] = {"command": command.strip(), "machine": facts, "cases": [], "targets": [], "limits": None}
    print(machine.text(facts), flush=True)
    verdicts: list[measure.Verdict] = []
    wrong = 0
    total = len(chosen) + len(reports)
    for number, case in enumerate(chosen, start=1):
        measured = _run_case(case, options, f"[{number}/{total}] {case.name}")
        rows = measured.rows
        wrong += sum(r.failure is not None for r in rows)
        print("\n" + table.text(case, rows), flush=True)
        _warn(measured.contention)
        here = [measure.judge(t, measured) for t in registry.TARGETS if t.case == case.name]
        verdicts += here
        found["cases"].append(table.case_record(case, rows) | {"contention": measured.contention})
        found["targets"] += [table.verdict_record(v) for v in here]
        if options.out is not None:
            write_json(options.out, found)
    if reports:
        print(f"[{total}/{total}] limits", file=sys.stderr, flush=True)
        with measure.Contention() as contention:
            found["limits"] = limits.report(options.rounds or 15)
        found["limits"]["contention"] = contention.share
        print("\nlimits\n" + limits.text(found["limits"]), flush=True)
        _warn(contention.share)
        if options.out is not None:
            write_json(options.out, found)
    if verdicts:
        print("\n" + table.verdicts_text(verdicts))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
