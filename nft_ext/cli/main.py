"""Parses the command line and prints the user's errors as one line."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any


class Parser(argparse.ArgumentParser):
    """A parser without abbreviations: `--seed 3` would mean `--seeds 3` where only `--seeds` exists."""

    def __init__(self, *, allow_abbrev: bool = False, **options: Any) -> None:
        super().__init__(allow_abbrev=allow_abbrev, **options)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command. Returns the exit status: 0 done, 1 bad input, 2 bad usage, 130 interrupted."""
    _open_standard_streams()
    from nft_ext.cli import demo, evaluate, explain, fetch, info, reproduce, sweep, train
    from nft_ext.montecarlo.distributed.ranks import RanksError

    parser = Parser(prog="nft-ext", description="Noisy inference and noise-aware training for NVM crossbars.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in (info, demo, fetch, train, evaluate, sweep, explain, reproduce):
        module.add_parser(commands)
    arguments = parser.parse_args(argv)
    try:
        _check_environment()
        status = arguments.run(arguments) or 0
        sys.stdout.flush()  # a full disk is an error of this command, not of Python's exit
        return status
    except BrokenPipeError:  # the reader closed the pipe, for example head
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python flushes stdout once more at its exit
        return 0
    except (ValueError, TypeError, OSError, ImportError, ArithmeticError, RanksError) as error:
        print(f"nft-ext {arguments.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\nnft-ext {arguments.command}: interrupted", file=sys.stderr)
        return 130


def _check_environment() -> None:
    """Refuses settings that the first operator would refuse in the middle of the work."""
    from nft_ext.ops import build_info

    build_info.instruction_set()
    build_info.one_pass()


def _open_standard_streams() -> None:
    """Opens the null device in place of closed standard streams. Else the next file opened, a result for example, would
    get the number of stderr, and messages would be written into it.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:  # noqa: PERF203
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115  (stays open)
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115  (stays open)


if __name__ == "__main__":
    sys.exit(main())
