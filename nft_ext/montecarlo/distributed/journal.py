"""The file that keeps the finished chips of an evaluation: a header line, then one line per chip.

Each pass appends its lines in one write and syncs them to the disk (fsync) before the next pass begins. So a killed
process leaves whole lines and at most one torn last line. The next opening drops the torn line, and its chip runs
again. A power failure may tear several lines of the last pass. Such a file is refused, and the error names the first
line to delete.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from nft_ext._common.checks import fail
from nft_ext._common.differences import Difference, differences, listed
from nft_ext._common.files import sync_folder
from nft_ext._common.network_identity import network_differences
from nft_ext._common.reading import check_regular
from nft_ext.montecarlo.distributed.rows import Row, signed, verified

FORMAT = "nft_ext.journal/2"
START = f'{{"format": "{FORMAT}"'.encode()
OLDER = b'{"format": "nft_ext.journal/1"'  # without a checksum of the header
HEADER = ("fixed", "noted", "recorded")  # the mappings that the header line stores
UNCHECKED = "an earlier version wrote it, so attributes, callables and buffers of the network could not be checked"


class Journal:
    """An open, locked journal file. `close`, or leaving the context, closes and unlocks it.

    Attributes:
        rows: draw -> Row, all chips in the file.
        settled: values decided once for all chips of the file.
        notes: notes for the report.
        seconds: wall time of the chips that the file held when it was opened.
    """

    def __init__(
        self, path: str | os.PathLike, header: dict[str, dict[str, Any]], settle: Callable[[], dict[str, Any]] = dict
    ):
        """Creates the file, or continues a file of the same configuration.

        Args:
            path: the file.
            header: {"fixed": ..., "noted": ..., "recorded": ...}, each a mapping of JSON values. A file is refused if
                its "fixed" fields differ. Differences in "noted" fields change figures only by rounding and give notes.
                "older" and "unread", if there, are those of `configuration`.
            settle: called for a new file only. Returns `settled`, which the header line stores.

        Raises:
            FileNotFoundError: the folder does not exist.
            ValueError: another kind of file, a damaged line, or another configuration; names the fields that differ.
                Also a pipe or a device in place of a file.
            OSError: another process writes the file, or it cannot be written.
        """
        self.path = Path(path)
        if not self.path.parent.is_dir():
            fail("resume", "must lie in an existing folder", str(path), kind=FileNotFoundError)
        if self.path.is_dir():
            fail("resume", "must name a file, not a folder", str(path))
        if self.path.exists() and not self.path.is_file():
            fail("resume", "must name a regular file, not a pipe or a device", str(path))
        self.rows: dict[int, Row] = {}
        self.notes: list[str] = []
        self._end = 0
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            check_regular(self._file, self.path)  # whatever has taken the name since
            self._lock()
            beginning = os.pread(self._file, len(START), 0)
            if not any(beginning == start[: len(beginning)] for start in (START, OLDER)):
                self._refuse_kind()  # before the whole of it is read
            content = self.path.read_bytes()
            whole = content[: content.rfind(b"\n") + 1]
            if whole:
                self._continue(whole, json.loads(json.dumps(header)))
            else:
                self._begin(header, settle)
        except BaseException:
            self.close()
            raise
        self.seconds = sum(row.seconds for row in self.rows.values())

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Closes and unlocks the file; `rows` stay."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def add(self, rows: list[Row]) -> None:
        """Appends rows of new draws. They are on the disk when this returns.

        Raises:
            OSError: the file cannot be written. It keeps all earlier lines.
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
                "resume: another process is writing this file; wait for it or name another file",
                str(self.path),
            ) from None

    def _begin(self, header: dict[str, Any], settle: Callable[[], dict[str, Any]]) -> None:
        # Overwrites only an empty file or a torn header.
        os.ftruncate(self._file, 0)
        self.settled = settle()
        kept = {name: header[name] for name in HEADER}
        self._append((signed(json.dumps({"format": FORMAT} | kept | {"settled": self.settled})) + "\n").encode())
        sync_folder(self.path.parent)
        self._note_unread(header)

    def _continue(self, whole: bytes, header: dict[str, Any]) -> None:
        first, *lines = whole[:-1].split(b"\n")
        try:
            text = first.decode()
            signature = verified(text)
            # Only a header of the older format may lack its checksum.
            found = json.loads(text if signature is None and first.startswith(OLDER) else signature or "")
            fixed, noted, self.settled = dict(found["fixed"]), dict(found["noted"]), dict(found["settled"])
            if "crc" in found:
                raise ValueError("a checksum that does not match")
        except (ValueError, KeyError, TypeError, RecursionError):
            fail("resume", "must begin with a whole header line", f"{self.path}: line 1 is damaged")
        self._compare(*_as_of_now(fixed, noted), header)
        for number, line in enumerate(lines, start=2):
            try:
                row = Row.parse(line.decode())
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                fail(
                    "resume",
                    "must have whole lines before the last one",
                    f"{self.path}: line {number} is damaged; delete it and all later lines, and their chips run again",
                )
            if not row.same_figures(self.rows.setdefault(row.draw, row)):
                fail(
                    "resume",
                    "must hold one outcome per chip",
                    f"{self.path}: line {number} gives draw {row.draw} other figures than an earlier line",
                )
        os.ftruncate(self._file, len(whole))
        self._end = len(whole)

    def _compare(self, fixed: dict[str, Any], noted: dict[str, Any], header: dict[str, Any]) -> None:
        if found := _fixed_differences(fixed, header):
            text = listed(found, "in the file", "now")
            fail("resume", "must be of the same configuration", f"{self.path}, which differs in {text}")
        recorded = {name: value for name, value in header["noted"].items() if name in noted}
        for name, there, now in differences(noted, recorded):
            begun = f"{self.path.name} was begun with {name} {there}, now {now}"
            self.notes.append(f"{begun}: chips of the two may differ by rounding")
        if not isinstance(fixed.get("network"), Mapping) and "network" in header.get("older", {}):
            self.notes.append(f"{self.path.name}: {UNCHECKED}")
            warnings.warn(f"resume: {self.path}: {UNCHECKED}", stacklevel=2)
        self._note_unread(header)

    def _note_unread(self, header: dict[str, Any]) -> None:
        if unread := ", ".join(header.get("unread", ())):
            self.notes.append(f"{self.path.name}: values of these types in the network cannot be compared: {unread}")

    def _refuse_kind(self) -> NoReturn:
        fail(
            "resume",
            "must be a journal of monte_carlo(resume=...) or a new file",
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
                f"resume: cannot be written ({error.strerror}); the {len(self.rows)} "
                "finished chips stay in it, and the same call continues from them",
                str(self.path),
            ) from error
        self._end += len(content)


def _fixed_differences(fixed: dict[str, Any], header: dict[str, Any]) -> list[Difference]:
    """What differs in the fields that must not. The network is compared layer by layer, or as its file recorded it."""
    now, there = dict(header["fixed"]), dict(fixed)
    if isinstance(there.get("network"), Mapping) and isinstance(now.get("network"), Mapping):
        return network_differences(there.pop("network"), now.pop("network")) + differences(there, now)
    return differences(there, now | header.get("older", {}))


def _as_of_now(fixed: dict[str, Any], noted: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Converts a header of version 0.2 or older, which fixed the package's version in place of the noise's version."""
    if "noise" in fixed or "nft_ext" not in fixed:
        return fixed, noted
    version = str(fixed["nft_ext"])
    others = {name: value for name, value in fixed.items() if name != "nft_ext"}
    return others | {"noise": ".".join(version.split(".")[:2])}, noted | {"nft_ext": version}
