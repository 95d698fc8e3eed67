"""The file an evaluation streams its chips to, so that nothing finished is lost: a header line, then one line a chip.

Each pass's lines are appended in one write and brought to the disk (fsync) before the next pass begins. A process
killed at any moment therefore leaves whole lines and at most one torn last line, which is dropped at the next opening
and its chip done again. A machine that loses power may tear several lines of the last pass; then the file is refused,
and the error says from which line on to delete.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from nft_ext._common.checks import fail
from nft_ext._common.differences import differences, listed
from nft_ext._common.files import sync_folder
from nft_ext.montecarlo.distributed.rows import Row

FORMAT = "nft_ext.journal/1"
START = f'{{"format": "{FORMAT}"'.encode()


class Journal:
    """An open, locked journal file; `close` (or leaving the context) gives it and its lock back.

    rows: draw -> Row, all chips in the file. settled: what was decided once for all of them.
    notes: what a report that rests on the file should say. seconds: wall time that its chips took when it was opened.
    """

    def __init__(
        self, path: str | os.PathLike, header: dict[str, dict[str, Any]], settle: Callable[[], dict[str, Any]] = dict
    ):
        """Creates the file, or continues one of the same configuration.

        header: {"fixed": ..., "noted": ..., "recorded": ...}, each field -> value, as JSON takes it. A file whose
            "fixed" fields differ is refused. "noted" fields change figures by rounding at most: a difference becomes a
            note.
        settle: called for a new file only; gives `settled`, which the header line then holds.

        Raises FileNotFoundError or ValueError (names the file, and the fields that differ with both values), and
        OSError (another process has it open; the disk is full).
        """
        self.path = Path(path)
        if not self.path.parent.is_dir():
            fail("resume", "must lie in an existing folder", str(path), kind=FileNotFoundError)
        if self.path.is_dir():
            fail("resume", "must name a file, not a folder", str(path))
        self.rows: dict[int, Row] = {}
        self.notes: list[str] = []
        self._end = 0
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            self._lock()
            content = self.path.read_bytes()
            whole = content[: content.rfind(b"\n") + 1]
            if whole:
                self._continue(whole, json.loads(json.dumps(header)))
            else:
                self._begin(content, header, settle)
        except BaseException:
            self.close()
            raise
        self.seconds = sum(row.seconds for row in self.rows.values())

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Gives the file and its lock back; `rows` stay."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def add(self, rows: list[Row]) -> None:
        """Appends the rows, of draws that are not there yet; they are on the disk when this returns.

        Raises OSError where the file cannot be written; the lines before stay.
        """
        self._append("".join(row.line() + "\n" for row in rows).encode())
        self.rows |= {row.draw: row for row in rows}

    # ---- the file

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(
                errno.EWOULDBLOCK,
                "resume: another process is writing this file; wait for it, or name another file",
                str(self.path),
            ) from None

    def _begin(self, content: bytes, header: dict[str, Any], settle: Callable[[], dict[str, Any]]) -> None:
        # Nothing, or a header cut short by a kill; anything else is somebody's file, not to be overwritten.
        if content[: len(START)] != START[: len(content)]:
            self._refuse_kind()
        os.ftruncate(self._file, 0)
        self.settled = settle()
        self._append((json.dumps({"format": FORMAT} | header | {"settled": self.settled}) + "\n").encode())
        sync_folder(self.path.parent)

    def _continue(self, whole: bytes, header: dict[str, Any]) -> None:
        first, *lines = whole[:-1].split(b"\n")
        if not first.startswith(START):
            self._refuse_kind()
        try:
            found = json.loads(first)
            fixed, noted, self.settled = found["fixed"], found["noted"], found["settled"]
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError):
            fail("resume", "must begin with a whole header line", f"{self.path}: line 1 is damaged")
        self._compare(*_as_of_now(fixed, noted), header)
        for number, line in enumerate(lines, start=2):
            try:
                row = Row.parse(line.decode())
            except (ValueError, KeyError):
                fail(
                    "resume",
                    "must have whole lines before the last one",
                    f"{self.path}: line {number} is damaged; delete it and what follows, and those chips are done "
                    "again",
                )
            if not row.same_figures(self.rows.setdefault(row.draw, row)):
                fail(
                    "resume",
                    "must hold one outcome a chip",
                    f"{self.path}: line {number} gives draw {row.draw} other figures than a line before it",
                )
        os.ftruncate(self._file, len(whole))
        self._end = len(whole)

    def _compare(self, fixed: dict[str, Any], noted: dict[str, Any], header: dict[str, Any]) -> None:
        if found := differences(fixed, header["fixed"]):
            text = listed(found, "in the file", "now")
            fail("resume", "must be of the same configuration", f"{self.path}, which differs in {text}")
        for name, there, now in differences(noted, header["noted"]):
            begun = f"{self.path.name} was begun with {name} {there}, now {now}"
            self.notes.append(f"{begun}: chips of the two may differ by rounding")

    def _refuse_kind(self) -> NoReturn:
        fail(
            "resume",
            "must be a journal of monte_carlo(resume=...), or not exist yet",
            f"{self.path}, which is another kind of file",
        )

    def _append(self, content: bytes) -> None:
        try:
            os.lseek(self._file, self._end, os.SEEK_SET)
            rest = memoryview(content)
            while rest:
                rest = rest[os.write(self._file, rest) :]
            os.fsync(self._file)
        except OSError as error:
            os.ftruncate(self._file, self._end)
            raise OSError(
                error.errno,
                f"resume: cannot be written ({os.strerror(error.errno)}); the {len(self.rows)} "
                "finished chips stay in it, and the same call goes on from them",
                str(self.path),
            ) from error
        self._end += len(content)


def _as_of_now(fixed: dict[str, Any], noted: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Up to 0.2 a header fixed the package's version, which told the noise by its first two numbers."""
    if "noise" in fixed or "nft_ext" not in fixed:
        return fixed, noted
    version = str(fixed["nft_ext"])
    others = {name: value for name, value in fixed.items() if name != "nft_ext"}
    return others | {"noise": ".".join(version.split(".")[:2])}, noted | {"nft_ext": version}
