"""Downloading one file: resumed after an interruption, checked against its checksum, in place only when whole."""

from __future__ import annotations

import hashlib
import http.client
import os
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from nft_ext._common.checks import fail
from nft_ext._common.progress import Progress

ATTEMPTS = 4  # at each address, while the trouble looks passing
PAUSE = 1.0  # seconds before the second attempt, doubled before each further one
TIMEOUT = 30.0  # seconds without a byte
BLOCK = 1 << 18


@dataclass(frozen=True)
class Remote:
    """A published file.

    Attributes:
        name: its file name.
        urls: addresses to try, in order.
        md5: its checksum, in hexadecimal.
        checksum_from: who published the checksum.
        bytes: its size, where known; nothing larger is kept.
    """

    name: str
    urls: tuple[str, ...]
    md5: str
    checksum_from: str
    bytes: int | None = None


class _Passing(Exception):
    """Trouble that may be gone at the next attempt."""


class _Final(Exception):
    """Trouble that will not be gone at this address."""


class _Wrong(_Final):
    """Bytes came, but not those of the file."""


def download(remote: Remote, target: Path, *, pause: float = PAUSE, progress: bool | None = None) -> bool:
    """Puts `remote` at `target`; returns False if it was there already, whole.

    Bytes go to TARGET.part. An interrupted download continues there, at the next attempt or call. The file takes its
    name only once its checksum is right; one with a wrong checksum is deleted.

    Args:
        target: the file; its folder exists.
        pause: seconds before the second attempt.
        progress: True, False, or None for a terminal only.

    Raises:
        ConnectionError: no address gave the file: no network, an HTTP error, or an end too early (each address with its
            reason).
        ValueError: the same, and at least one gave another file than the published one.
        OSError: the folder is not writable, the disk is full.
    """
    if target.is_file() and md5_of(target) == remote.md5:
        return False
    part = target.with_name(target.name + ".part")
    troubles: dict[str, _Final] = {}
    for url in remote.urls:
        try:
            _from(url, remote, part, pause, progress)
        except _Final as trouble:
            troubles[url] = trouble
            continue
        os.replace(part, target)
        return True
    reasons = "; ".join(f"{url}: {trouble}" for url, trouble in troubles.items())
    kept = f" {part} keeps what came; the same command continues there." if part.exists() else ""
    fail(
        remote.name,
        "must be downloadable, or put there by hand",
        f"{reasons}.{kept} By hand: the file with md5 "
        f"{remote.md5} (published by {remote.checksum_from}) belongs at {target}",
        ValueError if any(isinstance(t, _Wrong) for t in troubles.values()) else ConnectionError,
    )


def md5_of(path: Path) -> str:
    """The file's md5, in hexadecimal: against damage, as the publishers give it; it is no defence against forgery."""
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _from(url: str, remote: Remote, part: Path, pause: float, progress: bool | None) -> None:
    """Fills `part` from one address, checked; raises _Final if that cannot be done."""
    doubtful = part.exists()  # its beginning may be another file's
    attempt = 1
    while True:
        try:
            _receive(url, remote, part, progress)
        except _Passing as trouble:
            if attempt == ATTEMPTS:
                raise _Final(f"{trouble} ({ATTEMPTS} attempts)") from trouble
            time.sleep(pause * 2 ** (attempt - 1))
            attempt += 1
            continue
        found, size = md5_of(part), part.stat().st_size
        if found == remote.md5:
            return
        part.unlink()
        if not doubtful:
            raise _Wrong(f"{size} bytes with md5 {found} instead of {remote.md5}; they were deleted")
        doubtful = False  # once more, from the start


def _receive(url: str, remote: Remote, part: Path, progress: bool | None) -> None:
    """Appends to `part` what is missing of it, or writes it from the start where the server does not continue."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "nft_ext"} | ({"Range": f"bytes={have}-"} if have else {})
    request = urllib.request.Request(url, headers=headers)
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and have:  # nothing follows: whole already (the checksum will tell), or another file
            return
        trouble = f"HTTP error {error.code} ({error.reason})"
        raise (_Passing if error.code >= 500 or error.code == 429 else _Final)(trouble) from error
    except (urllib.error.URLError, OSError, http.client.HTTPException) as error:
        raise _Passing(f"no connection ({getattr(error, 'reason', error)}); is there a network?") from error
    with answer:
        if answer.status != 206:
            have = 0
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length is not None and length.isdigit() else None
        limit = remote.bytes if remote.bytes is not None else total
        shown = Progress((total or have) / 1e6, remote.name, "MB", progress)
        with open(part, "ab" if have else "wb") as file, shown as bar:
            bar.update(have / 1e6)
            while True:
                try:
                    block = answer.read(BLOCK)
                except (OSError, http.client.HTTPException) as error:
                    raise _Passing(f"the connection broke after {have} bytes ({error})") from error
                if not block:
                    break
                have += len(block)
                if limit is not None and have > limit:
                    break
                file.write(block)
                bar.update(len(block) / 1e6)
    if limit is not None and have > limit:
        part.unlink()
        raise _Wrong(f"more than the {limit} bytes that the file has")
    if total is not None and have < total:
        raise _Passing(f"it ended after {have} of {total} bytes")
