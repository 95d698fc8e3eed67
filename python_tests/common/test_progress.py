"""Progress: a bar on a terminal, sparse lines in a log, nothing when switched off."""

import io

import pytest

from nft_ext._common import progress as module
from nft_ext._common.progress import Progress, duration


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock the test moves by hand."""
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def shown_on(stream, monkeypatch):
    monkeypatch.setattr(module.sys, "stderr", stream)
    return stream


def test_terminal_shows_one_rewritten_line_with_what_is_left(monkeypatch, clock):
    stream = shown_on(Terminal(), monkeypatch)
    with Progress(4, "evaluate", "chips") as progress:
        clock[0] += 10
        progress.update(1, note="accuracy 0.9")
        assert "1/4 chips  0:10, 0:30 left  accuracy 0.9" in stream.getvalue()
        assert "[######..................]" in stream.getvalue()
    assert stream.getvalue().count("\n") == 1


def test_log_gets_a_line_every_ten_seconds_and_one_at_the_end(monkeypatch, clock):
    stream = shown_on(io.StringIO(), monkeypatch)
    with Progress(100, "train", "steps") as progress:
        for _ in range(100):
            clock[0] += 0.25
            progress.update(1)
    lines = stream.getvalue().splitlines()
    assert lines == [
        "train  40/100 steps  0:10, 0:15 left",
        "train  80/100 steps  0:20, 0:05 left",
        "train  100/100 steps  0:25",
    ]


def test_fractions_of_a_unit_add_up(monkeypatch, clock):
    stream = shown_on(io.StringIO(), monkeypatch)
    with Progress(1, "evaluate", "chips") as progress:
        for _ in range(10):
            progress.update(0.1)  # sums to 0.9999999999999999
    assert "1/1 chips" in stream.getvalue()


@pytest.mark.parametrize("enabled, stream", [(False, Terminal()), (None, io.StringIO())])
def test_silent_when_off_or_when_only_a_terminal_should_see_it(monkeypatch, enabled, stream):
    shown_on(stream, monkeypatch)
    with Progress(2, "evaluate", "chips", enabled=enabled) as progress:
        progress.update(2)
    assert stream.getvalue() == ""


def test_an_exception_leaves_how_far_it_came(monkeypatch, clock):
    stream = shown_on(io.StringIO(), monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        with Progress(10, "train", "epochs") as progress:
            progress.update(3)
            clock[0] += 65
            raise KeyboardInterrupt
    assert stream.getvalue() == "train  3/10 epochs  stopped after 1:05\n"


def test_empty_work_and_long_work():
    assert "0/0 chips" in Progress(0, "evaluate", "chips", enabled=False).line()
    assert duration(3661.4) == "1:01:01"


@pytest.mark.parametrize("arguments", [dict(total=-1), dict(enabled="yes")])
def test_bad_arguments_are_named(arguments):
    with pytest.raises(ValueError, match=f"^{next(iter(arguments))}: must be .*; got"):
        Progress(**({"total": 1, "label": "evaluate", "unit": "chips"} | arguments))


def test_time_left_is_told_from_what_this_process_did(clock):
    with Progress(10, "train", "epochs", enabled=False, done=8) as progress:
        assert progress.line().endswith("8/10 epochs  starting")
        clock[0] += 30
        progress.update(1)
        assert "9/10 epochs  0:30, 0:30 left" in progress.line()
    with pytest.raises(ValueError, match=r"done: must be in 0\.\.10; got 11"):
        Progress(10, "train", "epochs", done=11)
