"""Output files of the commands: their names, their checks before any work, and plots where matplotlib is installed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from nft_ext._common.checks import fail
from nft_ext._common.files import check_distinct, check_writable_target, make_writable_folder

CHECKPOINT = ".safetensors"


def beside(out: Path, suffix: str) -> Path:
    """The name of a file beside a checkpoint: "net.safetensors" and "net" give "net.csv", "net-0.2" "net-0.2.csv"."""
    return out.with_suffix(suffix) if out.suffix == CHECKPOINT else out.with_name(out.name + suffix)


def check_folder(folder: Path, names: Iterable[str], inputs: Mapping[str, str | Path | None]) -> None:
    """Creates the folder of --out, and checks that every file of these names can be written there later.

    Args:
        folder: the folder.
        names: the names of all files.
        inputs: argument -> a file that the command reads. No output may replace it.

    Raises:
        ValueError: the folder or a file cannot be written, or an output would replace an input.
    """
    make_writable_folder("--out", folder)
    for name in names:
        check_writable_target("--out", folder / name)
        check_distinct({**inputs, "--out": folder / name})


def check_training(out: Path, resume: bool, restart: bool, files: Iterable[Path], states: Iterable[Path]) -> None:
    """Refuses a training that would replace the files of another one, unless it continues or restarts that.

    Args:
        out: the checkpoint.
        resume, restart: the options.
        files: the other output files.
        states: the files that --resume would continue.

    Raises:
        ValueError: both options; a file cannot be written; or an earlier training left a file, and no option is given.
    """
    if resume and restart:
        fail("--resume", "must not be combined with --restart", "both")
    states, files = list(states), list(files)
    for path in (out, *files, *states):
        check_writable_target("OUT", path)
    found = [path for path in (*states, out, *files) if path.is_file()]
    if found and not (resume or restart):
        rule = "must not name the files of an earlier training; add --resume to continue it or --restart to replace it"
        fail("OUT", rule, str(found[0]))
    if resume and found and not any(state.is_file() for state in states):
        fail("--resume", f"needs the state, {states[0]}; --restart replaces the other files", str(found[0]))
    if resume and not found:
        for state in states:  # earlier versions replaced any suffix: "net-0.2" gave "net-0.state"
            older = out.with_suffix(state.suffix)
            if older not in states and older.is_file():
                fail("--resume", f"must find the state under its present name, {state}; rename it", str(older))


def plotted(plot: Callable[[], None]) -> None:
    """Makes a plot. Without matplotlib it prints a note, because numbers must not depend on it."""
    try:
        plot()
    except ImportError as error:
        print(f"note: no plot: {error}", file=sys.stderr)
