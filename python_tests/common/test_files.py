"""Files are written whole or not at all."""

import math
import os
import stat
import threading

import pytest

from nft_ext._common.files import (
    atomic_file,
    check_distinct,
    check_writable_target,
    finite_or_none,
    make_writable_folder,
    number_in_name,
    remove_leftovers,
    write_atomically,
    write_csv,
    write_json,
)


def test_an_error_inside_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "result"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), atomic_file(path) as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["result"]


@pytest.mark.parametrize("mask, rights", [(0o022, 0o644), (0o027, 0o640)])
def test_the_rights_are_the_usual_ones(tmp_path, mask, rights):
    before = os.umask(mask)
    try:
        write_atomically(tmp_path / "result", b"new")
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(tmp_path / "result").st_mode) == rights


def test_a_link_stays_and_the_file_behind_it_is_replaced(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "result").write_bytes(b"old")
    (tmp_path / "link").symlink_to(tmp_path / "folder" / "result")
    write_atomically(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "folder" / "result").read_bytes() == b"new"
    (tmp_path / "folder" / ".result.kill0_ed.tmp").touch()
    remove_leftovers(tmp_path / "link")
    assert os.listdir(tmp_path / "folder") == ["result"]


def test_a_pipe_is_written_to(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    found = []
    reader = threading.Thread(target=lambda: found.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    write_atomically(tmp_path / "pipe", b"new")
    reader.join(10)
    assert found == [b"new"]


def test_a_missing_folder_is_named_by_the_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="not written, an older file is kept: .*nowhere/result"):
        write_atomically(tmp_path / "nowhere" / "result", b"new")


def test_json(tmp_path):
    write_json(tmp_path / "a.json", {"a": [1, math.inf]})
    assert (tmp_path / "a.json").read_text() == '{\n "a": [\n  1,\n  Infinity\n ]\n}\n'
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"a": math.nan}, strict=True)
    assert "Infinity" in (tmp_path / "a.json").read_text()


def test_csv(tmp_path):
    write_csv(tmp_path / "a.csv", [("x", "y"), (1, "a,b")])
    assert (tmp_path / "a.csv").read_bytes() == b'x,y\r\n1,"a,b"\r\n'
    write_csv(tmp_path / "a.csv", [("x",), (1,)], end="\n")
    assert (tmp_path / "a.csv").read_bytes() == b"x\n1\n"


def test_numbers_that_json_has_not_become_none():
    assert finite_or_none({"a": (1, math.nan, [-math.inf]), "b": "nan", "c": 0.5}) == {
        "a": [1, None, [None]],
        "b": "nan",
        "c": 0.5,
    }


def test_a_long_name_is_written_and_its_leftovers_found(tmp_path):
    path = tmp_path / ("x" * 250)
    check_writable_target("out", path)
    with pytest.raises(KeyboardInterrupt), atomic_file(path):
        (leftover,) = tmp_path.iterdir()
        raise KeyboardInterrupt
    write_atomically(path, b"new")
    leftover.touch()
    remove_leftovers(path)
    assert list(tmp_path.iterdir()) == [path]


def test_leftovers_of_another_file_stay(tmp_path):
    """A writer of "net.csv" may be at work while one of "net" begins."""
    with atomic_file(tmp_path / "net.csv") as file:
        remove_leftovers(tmp_path / "net")
        file.write(b"new")
    assert (tmp_path / "net.csv").read_bytes() == b"new"


def test_a_folder_that_refuses_a_file_is_told_beforehand(tmp_path, monkeypatch):
    def refusing(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("nft_ext._common.files.tempfile.mkstemp", refusing)
    with pytest.raises(ValueError, match="^out: must lie in a writable folder .Permission denied.; got .*a$"):
        check_writable_target("out", tmp_path / "a")
    with pytest.raises(ValueError, match="^--out: must lie in a writable folder"):
        make_writable_folder("--out", tmp_path / "new")


def test_two_names_of_one_file_are_refused(tmp_path):
    (tmp_path / "b").symlink_to(tmp_path / "a")
    check_distinct({"a": tmp_path / "a", "none": None, "c": tmp_path / "c"})
    with pytest.raises(ValueError, match="^b: must name another file than a; got .*b$"):
        check_distinct({"a": tmp_path / "a", "b": tmp_path / "b"})


def test_different_numbers_have_different_names():
    values = [0.1, 0.1000001, 1.0, 1e-5, 0.30000000000000004, 0.3]
    assert [number_in_name(value) for value in values[:4]] == ["0.1", "0.1000001", "1", "1e-05"]
    assert len({number_in_name(value) for value in values}) == len(values)
