"""Runs a long command and shows its progress: heartbeat.py LABEL COMMAND... [--or COMMAND...]

Prints downloads, installations and compiled files, and the elapsed time while the command prints nothing. The whole
output goes to build/logs/LABEL.log; its last lines are printed if the command fails. A command after --or runs if the
previous one fails. Standard library only: this runs before anything is installed.
"""

from __future__ import annotations

import os
import queue
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

SILENCE = 8.0  # seconds without output until the time is printed
SHOWN = (  # lines of pip and Ninja to show, and their short forms
    (re.compile(r"Downloading (\S+?)-(?:py|cp)\d\S*( \(.*\))?$"), r"downloading \1\2"),
    (re.compile(r"(Installing collected packages):.*"), r"installing the packages"),
    (re.compile(r"(\[\d+/\d+\]) Building \w+ object (?:\S+\.dir/)?(\S+)\.o$"), r"\1 \2"),
    (re.compile(r"(\[\d+/\d+\]) Linking .*?([^/\s]+)$"), r"\1 \2"),
)
TERMINAL = sys.stdout.isatty()


def say(text: str) -> None:
    """Prints one line."""
    print("\r\x1b[K" * TERMINAL + "  " + text, flush=True)


def beat(seconds: float) -> None:
    """Prints the elapsed time; on a terminal the next line replaces it."""
    print("\r\x1b[K" * TERMINAL + f"  {seconds:.0f} s", end="" if TERMINAL else "\n", flush=True)


def shown(line: str) -> str | None:
    """The short form of a line of the command; None if it is not shown."""
    for pattern, how in SHOWN:
        if pattern.match(line):
            return pattern.sub(how, line)
    return None


def run(command: list[str], log: Path) -> int:
    """Runs the command, shows its progress and returns its exit status."""
    try:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
    except OSError as error:
        log.write_text(f"{error}\n")
        return 127
    lines: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        for line in process.stdout or ():
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    began = said = time.monotonic()
    with log.open("w") as whole:
        while True:
            try:
                line = lines.get(timeout=max(0.0, said + (1.0 if TERMINAL else SILENCE) - time.monotonic()))
            except queue.Empty:
                said = time.monotonic()
                beat(said - began)
                continue
            if line is None:
                return process.wait()
            whole.write(line)
            text = shown(line.strip())
            if text is not None:
                said = time.monotonic()
                say(text)


def main(label: str, *words: str) -> int:
    """Runs the commands until one succeeds. Returns the last exit status."""
    commands: list[list[str]] = [[]]
    for word in words:
        if word == "--or":
            commands.append([])
        else:
            commands[-1].append(word)
    log = Path("build", "logs", re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-") + ".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    print(label, flush=True)
    began = time.monotonic()
    status = 1
    for command in commands:
        status = run(command, log)
        if status == 0:
            say(f"done in {time.monotonic() - began:.0f} s")
            return 0
    say("".join(log.read_text().splitlines(keepends=True)[-40:]).rstrip())
    print(f"{label}: failed with status {status}. The lines above are the end of {log}.", flush=True)
    return status if status > 0 else 1


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
