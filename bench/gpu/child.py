"""Runs one stage in this process: python -m bench.gpu.child NAME --out FILE --seconds S --known FILE.

A stage is a module of bench.gpu with `run(task)`. It saves its results with `task.save`, once or several times. It
raises `NotHere` if the machine lacks a tool, and another exception if a result is wrong.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from bench.gpu import stages

NOT_HERE_STATUS = 3


class NotHere(Exception):
    """The machine lacks a tool; the message names it and how to get it."""


class Wrong(Exception):
    """A result is wrong; the message names it."""


class Task:
    """A stage's time, the results of earlier stages, and the file for its own."""

    def __init__(self, out: Path, seconds: float, known: dict[str, Any]) -> None:
        self.out, self.known = out, known
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds until the stage should end by itself."""
        return self._end - time.monotonic()

    def save(self, found: Any) -> None:
        stages.write_json(self.out, found)

    def found_by(self, stage: str) -> Any:
        """The results of an earlier stage.

        Raises:
            NotHere: it has none.
        """
        if self.known.get(stage) is None:
            raise NotHere(f"needs the results of the stage {stage}, which has none")
        return self.known[stage]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench.gpu.child")
    parser.add_argument("stage")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--known", type=Path, required=True)
    options = parser.parse_args(argv)
    try:
        importlib.import_module(f"bench.gpu.{options.stage}").run(
            Task(options.out, options.seconds, stages.read_json(options.known) or {})
        )
    except (NotHere, Wrong) as reason:
        print(reason, flush=True)
        return NOT_HERE_STATUS if isinstance(reason, NotHere) else 1
    except Exception:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
