"""A progress display for long work: one rewritten line on a terminal, a line now and then in a log."""

from __future__ import annotations

import shutil
import sys
import time

from nft_ext._common.checks import fail

TERMINAL_INTERVAL = 0.1  # seconds between redraws: smooth to the eye, nothing beside the work
LOG_INTERVAL = 10.0  # seconds between lines where there is no terminal: a log stays readable
BAR_WIDTH = 24


def duration(seconds: float) -> str:
    """`seconds` as m:ss, or h:mm:ss from an hour on."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Progress:
    """Shows how far `total` units of work have come, and when they will be done, on stderr.

    Use as a context manager and call `update` as units finish::

        with Progress(200, "evaluate", "chips") as progress:
            for chip in range(200):
                ...
                progress.update(1, note="accuracy 0.91")

    total: units of work in all, >= 0.
    done: units that were finished before, in an earlier process; the time left is told from the others.
    label, unit: what is being done, and the plural name of what is counted.
    enabled: True shows it always (sparse lines where stderr is no terminal), None on a terminal
        only, False never.

    Raises ValueError if total is negative, done not in 0..total, or enabled is none of the three.
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
        self._shown = bool(enabled) or (enabled is None and self._terminal)
        self._interval = TERMINAL_INTERVAL if self._terminal else LOG_INTERVAL
        self._started = self._drawn = time.monotonic()

    def __enter__(self) -> Progress:
        self._started = self._drawn = time.monotonic()
        if self._shown and self._terminal:
            self._draw()
        return self

    def update(self, n: float = 1, note: str = "") -> None:
        """Counts `n` more units (a fraction is welcome); `note` replaces the last text shown."""
        self.done += n
        self.note = note or self.note
        if self._shown and time.monotonic() - self._drawn >= self._interval:
            self._draw()

    def __exit__(self, kind, value, traceback) -> None:
        if self._shown:
            self._draw(ended=True, stopped=kind is not None)

    def line(self, ended: bool = False, stopped: bool = False) -> str:
        """The text shown now."""
        elapsed = time.monotonic() - self._started
        share = min(1.0, self.done / self.total) if self.total else 1.0
        # Fractions add up to 0.999... of a unit: do not show one unit too few for that.
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
            # A line longer than the terminal would wrap, and could then not be rewritten.
            text = "\r" + text[: shutil.get_terminal_size().columns - 1] + "\x1b[K"
        self._stream.write(text + ("\n" if ended or not self._terminal else ""))
        self._stream.flush()
