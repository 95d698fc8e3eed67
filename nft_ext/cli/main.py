"""Parses the command line and prints the user's errors as one line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any


class Parser(argparse.ArgumentParser):
    """A parser without abbreviations: `--seed 3` would mean `--seeds 3` where only `--seeds` exists."""

    def __init__(self, *, allow_abbrev: bool = False, **options: Any) -> None:
        super().__init__(allow_abbrev=allow_abbrev, **options)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command. Returns the exit status: 0 done, 1 bad input, 2 bad usage, 130 interrupted."""
    from nft_ext.cli import demo, evaluate, fetch, info, reproduce, sweep, train
    from nft_ext.montecarlo.distributed.ranks import RanksError

    parser = Parser(prog="nft-ext", description="Noisy inference and noise-aware training for NVM crossbars.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in (info, demo, fetch, train, evaluate, sweep, reproduce):
        module.add_parser(commands)
    arguments = parser.parse_args(argv)
    try:
        return arguments.run(arguments) or 0
    except BrokenPipeError:  # the reader closed the pipe, for example head
        return 0
    except (ValueError, TypeError, OSError, ImportError, ArithmeticError, RanksError) as error:
        print(f"nft-ext {arguments.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\nnft-ext {arguments.command}: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
