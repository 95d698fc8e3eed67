"""Runs one stage in this process: python -m bench.gpu.child NAME --out FILE --seconds S --known FILE.

A stage is a module of bench.gpu with `run(task)`. It saves what it found with `task.save`, as often as it likes, and
raises where something is wrong; `NotHere` where the machine lacks a tool it needs.
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
    """The machine lacks what the stage needs; the message says what and how to get it."""


class Wrong(Exception):
    """A result is wrong; the message says which and how."""


class Task:
    """What a stage is given: its time, what earlier stages found, and where to save."""

    def __init__(self, out: Path, seconds: float, known: dict[str, Any]) -> None:
        self.out, self.known = out, known
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds until the stage should be done by itself."""
        return self._end - time.monotonic()

    def save(self, found: Any) -> None:
        stages.write_json(self.out, found)

    def found_by(self, stage: str) -> Any:
        """What an earlier stage found.

        Raises:
            NotHere: it found nothing.
        """
        if self.known.get(stage) is None:
            raise NotHere(f"needs what the stage {stage} finds, and that found nothing")
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
