"""Progress of long work: one rewritten line on a terminal, a line every 10 seconds in a log."""

from __future__ import annotations

import shutil
import sys
import time

from nft_ext._common.checks import fail

TERMINAL_INTERVAL = 0.1  # seconds between redraws on a terminal
LOG_INTERVAL = 10.0  # seconds between lines in a log
BAR_WIDTH = 24


def duration(seconds: float) -> str:
    """`seconds` as m:ss, or as h:mm:ss from one hour on."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Progress:
    """Shows on stderr how many of `total` units are done, and the time left.

    Use it as a context manager and call `update` as units finish::

        with Progress(200, "evaluate", "chips") as progress:
            for chip in range(200):
                ...
                progress.update(1, note="accuracy 0.91")

    Args:
        total: all units of work, >= 0.
        label: the name of the work.
        unit: the plural name of the units.
        enabled: True shows progress always, None on a terminal only, False never.
        done: units that an earlier process finished. The time left is estimated from the other units.

    Raises:
        ValueError: total is negative, done is outside 0..total, or enabled is none of the three.
    """

    def __init__(self, total: float, label: str, unit: str, enabled: bool | None = True, done: float = 0.0):
        if total < 0:
            fail("total", "must be >= 0", total)
        if not 0 <= done <= total:
            fail("done", f"must be in 0..{total:g}", done)
        if enabled not in (True, False, None):
            fail("enabled", "must be True, False or None", enabled)
        self.total, self.label, self.unit = total, label, unit
        self.done = self._before = float(done)
        self.note = ""
        self._stream = sys.stderr
        self._terminal = bool(getattr(self._stream, "isatty", lambda: False)())
        enabled = enabled and self._stream is not None  # None: stderr was closed before Python started
        self._shown = bool(enabled) or (enabled is None and self._terminal)
        self._interval = TERMINAL_INTERVAL if self._terminal else LOG_INTERVAL
        self._started = self._drawn = time.monotonic()

    def __enter__(self) -> Progress:
        self._started = self._drawn = time.monotonic()
        if self._shown and self._terminal:
            self._draw()
        return self

    def update(self, n: float = 1, note: str = "") -> None:
        """Counts `n` more units, possibly a fraction. `note` replaces the note shown before."""
        self.done += n
        self.note = note or self.note
        if self._shown and time.monotonic() - self._drawn >= self._interval:
            self._draw()

    def __exit__(self, kind, value, traceback) -> None:
        if self._shown:
            self._draw(ended=True, stopped=kind is not None)

    def line(self, ended: bool = False, stopped: bool = False) -> str:
        """The present text."""
        elapsed = time.monotonic() - self._started
        share = min(1.0, self.done / self.total) if self.total else 1.0
        # Fractions may add up to 0.999... of a unit: count that as one.
        count = f"{int(self.done + 1e-6)}/{int(self.total)} {self.unit}"
        if stopped:
            when = f"stopped after {duration(elapsed)}"
        elif ended:
            when = f"{duration(elapsed)}"
        elif self.done > self._before:
            rest = max(0.0, self.total - self.done)
            when = f"{duration(elapsed)}, {duration(elapsed * rest / (self.done - self._before))} left"
        else:
            when = "starting"
        parts = [self.label, count, when] + ([self.note] if self.note else [])
        if self._terminal:
            filled = int(share * BAR_WIDTH)
            parts.insert(1, "[" + "#" * filled + "." * (BAR_WIDTH - filled) + "]")
        return "  ".join(parts)

    def _draw(self, ended: bool = False, stopped: bool = False) -> None:
        self._drawn = time.monotonic()
        text = self.line(ended, stopped)
        if self._terminal:
            # A wrapped line cannot be rewritten.
            text = "\r" + text[: shutil.get_terminal_size().columns - 1] + "\x1b[K"
        self._stream.write(text + ("\n" if ended or not self._terminal else ""))
        self._stream.flush()
