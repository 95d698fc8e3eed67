"""Files that are something else: a pipe does not block, a device is not read to its end, and the message names them."""

import os
from pathlib import Path

import pytest

import nft_ext as nft
from nft_ext import training
from nft_ext._common.reading import open_regular, read_json
from nft_ext.data import idx
from nft_ext.montecarlo.distributed.journal import START, Journal

FILE = idx.IdxFile("labels", "labels", (4,), "", "")
READERS = {
    "json": lambda path: read_json("path", path, "a report"),
    "report": lambda path: nft.MonteCarloReport.from_json(path),
    "checkpoint": lambda path: training.load(path),
    "journal": lambda path: Journal(path, {"fixed": {}, "noted": {}, "recorded": {}}),
    "data set": lambda path: idx.read_idx(path, FILE, "Get it."),
}


@pytest.fixture(params=["pipe", "/dev/zero", "/dev/full"])
def special(request, tmp_path):
    if request.param != "pipe":
        return request.param if os.path.exists(request.param) else pytest.skip("no such device")
    os.mkfifo(tmp_path / "pipe")
    return str(tmp_path / "pipe")


@pytest.mark.parametrize("reader", READERS)
def test_only_regular_files_are_read(special, reader):
    with pytest.raises((ValueError, OSError), match="regular file|no such file") as caught:
        READERS[reader](Path(special))
    assert special in str(caught.value)


def test_a_folder_and_a_missing_file_are_no_files(tmp_path):
    with pytest.raises(OSError, match="not a regular file"):
        open_regular(tmp_path)
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "none")


DEEP = b'{"a":' + b"[" * 100_000
DAMAGED = {
    "nested too deeply": (DEEP, "a damaged file"),
    "no JSON": (b"\xff\xfe{", "a damaged file"),
    "a list": (b"[1]", "a JSON list"),
    "a huge number": (b'{"a": ' + b"9" * 10_000 + b"}", "a damaged file"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_json_is_one_line_that_names_the_file(tmp_path, name):
    content, words = DAMAGED[name]
    path = tmp_path / "report.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=words) as caught:
        read_json("path", path, "a report")
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "line",
    [
        START + b', "fixed": 3, "noted": {}, "settled": {}}\n',
        START + b', "fixed": {}}\n',
        START + b', "fixed": ' + DEEP + b"\n",
    ],
    ids=["no mapping", "an entry less", "nested too deeply"],
)
def test_a_damaged_journal_is_named(tmp_path, line):
    path = tmp_path / "journal"
    path.write_bytes(line)
    with pytest.raises(ValueError, match=f"{path}: line 1 is damaged"):
        READERS["journal"](path)
    assert path.read_bytes() == line


@pytest.mark.parametrize("change", ["null", '{"accuracy": 3}', '{"accuracy": {"per_run": "x"}}'])
def test_a_damaged_report_is_named(tmp_path, change):
    path = tmp_path / "report.json"
    path.write_text(f'{{"format": "nft_ext.monte_carlo/1", "metrics": {change}}}')
    with pytest.raises(ValueError, match="must be a whole report written by to_json") as caught:
        nft.MonteCarloReport.from_json(path)
    assert str(path) in str(caught.value)
