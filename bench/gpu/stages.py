"""Runs the stages of bench/gpu_check.py, each in its own process with its own time.

After a bad memory access of a kernel, CUDA is unusable in that process, and a hanging kernel can only be killed. Hence
one process per stage. A stage writes its results to a file while it runs, so a killed stage keeps them.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

PASSED, FAILED, LATE, NOT_RUN, SKIPPED = "passed", "failed", "out of time", "not run", "skipped"
SHORTEST_BOX = 5.0  # seconds; with less time left a stage is not started
GRACE = 3.0  # seconds between asking a late stage to end and ending it
KEPT_OUTPUT = 4000  # characters of a failed stage's output in its error


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage: its purpose and its time."""

    name: str
    what: str
    least: float  # seconds that earlier stages leave for it
    most: float  # seconds it gets if there is time
    correctness: bool  # whether its failure makes the exit status 1
    measures: bool = False  # whether it stops by itself before its time is up


@dataclasses.dataclass
class Outcome:
    """The outcome of a stage. found: its saved results. why: the reason if it did not pass."""

    state: str
    seconds: float = 0.0
    why: str = ""
    found: Any = None

    def record(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def box(stage: Stage, later: Sequence[Stage], left: float) -> float:
    """Seconds for `stage` out of `left`: at most its `most`, while `later` stages keep their `least`.

    Its own `least` has priority. 0 if too little time is left to start it.
    """
    wanted = min(stage.most, left - sum(s.least for s in later))
    given = min(left, max(wanted, stage.least))
    return given if given >= SHORTEST_BOX else 0.0


def unproven(stages: Sequence[Stage], outcomes: Mapping[str, Outcome]) -> list[str]:
    """Names of the correctness stages that failed or did not end.

    A stage that was skipped on request, or whose tool is missing, is not among them; the table shows its state.
    """
    return [s.name for s in stages if s.correctness and outcomes[s.name].state in (FAILED, LATE)]


def write_json(path: Path, value: Any) -> None:
    """Writes JSON atomically. The package has the same function, but this module runs before it is built."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(part, path)


def read_json(path: Path) -> Any:
    """The saved results of a stage; None without any."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None


def run_process(
    command: Sequence[str], seconds: float, log: Path, cwd: Path, environment: Mapping[str, str]
) -> tuple[int | None, str]:
    """(exit status, end of the output) of a command. The whole output goes to `log`.

    The status is None after a timeout; the command and its child processes have then been ended.
    """
    with log.open("wb") as out:
        process = subprocess.Popen(
            list(command),
            stdout=out,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=cwd,
            env=dict(environment),
            start_new_session=True,
        )
        try:
            status: int | None = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            _end(process)
    return status, log.read_text(errors="replace")[-KEPT_OUTPUT:]


def _end(process: subprocess.Popen) -> None:
    """Ends the remaining processes of a session: SIGTERM, then SIGKILL."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except (ProcessLookupError, PermissionError):
            break
        try:
            process.wait(timeout=GRACE)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def run_stages(
    stages: Sequence[Stage],
    skip: set[str],
    minutes: float,
    run: Callable[[Stage, float], Outcome],
    save: Callable[[dict[str, Outcome]], None],
    say: Callable[[str], None] = lambda line: None,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Outcome]:
    """Runs the stages in order and saves after each. A stage that raises has failed; the next one still runs.

    run(stage, seconds) returns a stage's outcome; save(outcomes so far) stores them. A failed build ends the run: later
    stages would test libraries of other sources.
    """
    end = clock() + 60 * minutes
    outcomes: dict[str, Outcome] = {}
    for number, stage in enumerate(stages):
        later = [s for s in stages[number + 1 :] if s.name not in skip]
        built = outcomes.get("build", Outcome(SKIPPED)).state in (PASSED, SKIPPED)
        start = clock()
        seconds = box(stage, later, end - start)
        if stage.name in skip:
            outcome = Outcome(SKIPPED, why="asked for with --skip")
        elif not built:
            outcome = Outcome(NOT_RUN, why="the build did not succeed")
        elif seconds == 0.0:
            outcome = Outcome(LATE, why=f"none of the {minutes:g} minutes was left for it")
        else:
            say(f"[{number + 1}/{len(stages)}] {stage.name}: {stage.what} (at most {seconds:.0f} s)")
            try:
                outcome = run(stage, seconds)
            except Exception as error:
                outcome = Outcome(FAILED, why=f"{type(error).__name__}: {error}")
            outcome.seconds = round(clock() - start, 1)
        outcomes[stage.name] = outcome
        say(f"    {outcome.state}, {outcome.seconds:.0f} s" + (f": {first_line(outcome.why)}" if outcome.why else ""))
        save(outcomes)
    return outcomes


def first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")
