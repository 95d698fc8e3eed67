"""How the stages of bench/gpu_check.py run: each in its own process, within its own time, its result kept at once.

A process a stage, because a kernel that reads past its memory leaves CUDA unusable for the rest of its process, and one
that hangs can only be killed. A stage writes what it found to a file as it goes, so a stage that is killed keeps what
it had.
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
SHORTEST_BOX = 5.0  # seconds; with less left a stage is not started
GRACE = 3.0  # seconds between asking a late stage to end and ending it
KEPT_OUTPUT = 4000  # characters of a failed stage's output that its error keeps


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage: what it proves or measures, and how long it may take."""

    name: str
    what: str
    least: float  # seconds that earlier stages leave for it
    most: float  # seconds it gets where there is time
    correctness: bool  # whether its failure makes the exit status 1
    measures: bool = False  # whether it is told to stop by itself before its time is up


@dataclasses.dataclass
class Outcome:
    """What became of a stage. found: whatever the stage saved; why: in words, where it did not pass."""

    state: str
    seconds: float = 0.0
    why: str = ""
    found: Any = None

    def record(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def box(stage: Stage, later: Sequence[Stage], left: float) -> float:
    """Seconds `stage` may take of the `left`: at most its `most`, and so that the `later` stages keep their `least`;
    its own `least` comes before theirs. 0 where too little is left to start it.
    """
    wanted = min(stage.most, left - sum(s.least for s in later))
    given = min(left, max(wanted, stage.least))
    return given if given >= SHORTEST_BOX else 0.0


def unproven(stages: Sequence[Stage], outcomes: Mapping[str, Outcome]) -> list[str]:
    """Names of the correctness stages that failed or did not come to their end. One that was skipped on request, or
    whose tool
    is not on the machine, is not among them: its state says so in the table."""
    return [s.name for s in stages if s.correctness and outcomes[s.name].state in (FAILED, LATE)]


def write_json(path: Path, value: Any) -> None:
    """Whole or not at all: a reader, or an interrupt, never sees half a file.

    The package has a function of the same name, but this module runs before the package is built.
    """
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(part, path)


def read_json(path: Path) -> Any:
    """What a stage saved; None where it saved nothing."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None


def run_process(
    command: Sequence[str], seconds: float, log: Path, cwd: Path, environment: Mapping[str, str]
) -> tuple[int | None, str]:
    """(exit status, end of the output) of a command; None for one that ran past `seconds`, and then it and all that it
    started are gone. The whole output goes to `log`.
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
    """Ends what is left of a process's session: first asked, then not."""
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
    """Runs the stages in order, saving after each; a stage that raises has failed, and the next one runs all the same.

    run(stage, seconds) gives a stage's outcome; save(outcomes so far) keeps it. A build that failed ends it: whatever
    ran then would be something else than the sources.
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
