"""Downloads one file: resumes after an interruption, verifies the checksum, and only then gives it its name."""

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

ATTEMPTS = 4  # per address, for temporary errors
PAUSE = 1.0  # seconds before the second attempt; doubled before each later one
TIMEOUT = 30.0  # seconds without data
CHUNK_BYTES = 1 << 18


@dataclass(frozen=True)
class Remote:
    """A published file.

    Attributes:
        name: its file name.
        urls: addresses to try, in order.
        md5: its checksum, in hexadecimal.
        checksum_from: publisher of the checksum.
        bytes: its size if known. A larger file is refused.
    """

    name: str
    urls: tuple[str, ...]
    md5: str
    checksum_from: str
    bytes: int | None = None


class _Passing(Exception):
    """A temporary error: another attempt may succeed."""


class _Final(Exception):
    """A lasting error of this address."""


class _Wrong(_Final):
    """The address sent another file."""


def download(remote: Remote, target: Path, *, pause: float = PAUSE, progress: bool | None = None) -> bool:
    """Downloads `remote` to `target`.

    Bytes go to TARGET.part. The next attempt or call continues an interrupted download there. The file gets its name
    when its checksum is right. A file with a wrong checksum is deleted.

    Args:
        remote: the published file.
        target: the local file, in an existing folder.
        pause: seconds before the second attempt.
        progress: True: show progress. None: on a terminal only. False: never.

    Returns:
        True if the file was downloaded, False if it was already there with the right checksum.

    Raises:
        ConnectionError: no address sent the file. The message gives a reason per address.
        ValueError: the same, and at least one address sent another file.
        OSError: the folder is not writable, or the disk is full.
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
    kept = f" {part} keeps the received bytes; run the same command again to continue." if part.exists() else ""
    return fail(
        remote.name,
        "must be downloaded, or copied there by hand",
        f"{reasons}.{kept} By hand: put the file with md5 "
        f"{remote.md5} (published by {remote.checksum_from}) at {target}",
        ValueError if any(isinstance(t, _Wrong) for t in troubles.values()) else ConnectionError,
    )


def md5_of(path: Path) -> str:
    """The file's md5, in hexadecimal. It detects damage, not forgery; the publishers give no stronger checksum."""
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _from(url: str, remote: Remote, part: Path, pause: float, progress: bool | None) -> None:
    """Fills `part` from one address and verifies its checksum, or raises _Final."""
    doubtful = part.exists()  # an older part may belong to another file
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
    """Appends the missing bytes to `part`, or writes it from the start if the server cannot continue."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "nft_ext"} | ({"Range": f"bytes={have}-"} if have else {})
    request = urllib.request.Request(url, headers=headers)
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and have:  # no bytes follow: `part` is complete, or another file; the checksum decides
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
                    chunk = answer.read(CHUNK_BYTES)
                except (OSError, http.client.HTTPException) as error:
                    raise _Passing(f"the connection broke after {have} bytes ({error})") from error
                if not chunk:
                    break
                have += len(chunk)
                if limit is not None and have > limit:
                    break
                file.write(chunk)
                bar.update(len(chunk) / 1e6)
    if limit is not None and have > limit:
        part.unlink()
        raise _Wrong(f"more than the {limit} bytes that the file has")
    if total is not None and have < total:
        raise _Passing(f"it ended after {have} of {total} bytes")
