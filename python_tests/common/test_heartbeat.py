"""tools/heartbeat.py, through which `make` installs and builds, never falls silent and never hides a failure."""

import runpy
import sys
from pathlib import Path

import pytest

from support.paths import ROOT


@pytest.fixture
def heartbeat(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main = runpy.run_path(str(ROOT / "tools" / "heartbeat.py"))["main"]
    monkeypatch.setitem(main.__globals__, "TERMINAL", False)
    return main


def python(code):
    return [sys.executable, "-c", code]


def test_a_silent_command_is_told_to_be_alive(heartbeat, capfd, monkeypatch):
    monkeypatch.setitem(heartbeat.__globals__, "SILENCE", 0.2)  # here alone: on a busy machine it would show elsewhere
    assert heartbeat("Waiting", *python("import time; time.sleep(1)")) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[0] == "Waiting" and lines.count("  0 s") + lines.count("  1 s") >= 3
    assert lines[-1].startswith("  done in")


def test_downloads_and_compiled_files_are_shown_and_the_rest_is_in_the_log(heartbeat, capfd, tmp_path):
    written = [
        "Collecting numpy",
        "  Downloading numpy-2.4.6-cp311-cp311-manylinux_2_28_x86_64.whl (16.8 MB)",
        "Installing collected packages: numpy, pip",
        "  [2/9] Building CXX object CMakeFiles/_C.dir/csrc/ops.cpp.o",
        "  [9/9] Linking CXX shared module /somewhere/nft_ext/_C.so",
    ]
    assert heartbeat("Building: a wheel", *python(f"print({chr(10).join(written)!r})")) == 0
    assert capfd.readouterr().out.splitlines()[1:-1] == [
        "  downloading numpy-2.4.6 (16.8 MB)",
        "  installing the packages",
        "  [2/9] csrc/ops.cpp",
        "  [9/9] _C.so",
    ]
    assert (tmp_path / "build" / "logs" / "building-a-wheel.log").read_text().splitlines() == written


def test_a_failure_shows_the_end_of_its_output_and_its_status(heartbeat, capfd):
    code = "import sys; print(*range(100), sep=chr(10)); print('no compiler', file=sys.stderr, flush=True); sys.exit(3)"
    assert heartbeat("Building", *python(code)) == 3
    lines = capfd.readouterr().out.splitlines()
    assert "no compiler" in lines and "99" in lines and "1" not in lines
    assert lines[-1] == "Building: failed with status 3. The lines above are the end of build/logs/building.log."


def test_the_command_after_or_runs_only_if_the_first_fails(heartbeat, capfd):
    assert heartbeat("Installing", "no-such-command", "--or", *python("open('second', 'w')")) == 0
    assert Path("second").exists()
    assert heartbeat("Installing", *python("pass"), "--or", *python("open('third', 'w')")) == 0
    assert not Path("third").exists()
    assert "failed" not in capfd.readouterr().out
