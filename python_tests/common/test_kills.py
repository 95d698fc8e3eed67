"""A hundred kills of a process that writes: what it had finished is there, once, and every file is whole.

python_tests/montecarlo/test_journal.py and python_tests/training/test_resume.py kill whole evaluations and trainings.
"""

import errno
import json
import os
import random
import signal
import struct
import time

import pytest
import torch

from nft_ext._common import files
from nft_ext._common.files import write_csv, write_json
from nft_ext.montecarlo.distributed.journal import Journal
from nft_ext.montecarlo.distributed.rows import Row
from nft_ext.training.container import read_tensors, write_tensors

KILLS = 100
HEADER = {"fixed": {"seed": 3}, "noted": {}, "recorded": {}}
FORMAT = "a format"


def write_for_ever(folder, pipe):
    """Writes every kind of file with a rising number, and says each number that is finished."""
    with Journal(folder / "journal", HEADER) as journal:
        number = len(journal.rows)
        while True:
            journal.add([Row(number, {"correct": float(number)}, 0.0)])
            write_json(folder / "report.json", {"number": number, "filler": list(range(2000))})
            write_csv(folder / "log.csv", [("number", "filler"), *((number, i) for i in range(500))])
            write_tensors(folder / "state", {"number": torch.full((4000,), number)}, {"number": number}, FORMAT)
            os.write(pipe, struct.pack("<q", number))
            number += 1


def killed_writer(folder, count, seconds):
    """Starts a writer and kills it `seconds` after it has said `count` numbers. Returns all numbers that it said."""
    reading, writing = os.pipe()
    child = os.fork()  # one torch thread: safe, and faster than a new Python
    if not child:
        try:
            write_for_ever(folder, writing)
        finally:
            os._exit(1)
    os.close(writing)
    said = b"".join(os.read(reading, 8) for _ in range(count))
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    with os.fdopen(reading, "rb") as pipe:
        said += pipe.read()
    return [number for (number,) in struct.iter_unpack("<q", said)]


@pytest.mark.slow
def test_a_hundred_kills_lose_and_repeat_nothing(tmp_path):
    chance, said = random.Random(1), []
    for _ in range(KILLS):
        said += killed_writer(tmp_path, chance.randint(0, 1), chance.uniform(0, 0.03))
        with Journal(tmp_path / "journal", HEADER) as journal:
            assert sorted(journal.rows) == list(range(len(journal.rows)))
            assert all(row.tallies == {"correct": float(draw)} for draw, row in journal.rows.items())
            finished = len(journal.rows)
        assert len(set(said)) == len(said)
        assert finished > max(said, default=-1)
        if not said:
            continue
        report = json.loads((tmp_path / "report.json").read_text())
        log = (tmp_path / "log.csv").read_text().splitlines()
        tensors, meta = read_tensors("state", tmp_path / "state", FORMAT, "the state")
        numbers = [report["number"], int(log[-1].split(",")[0]), meta["number"], int(tensors["number"][-1])]
        assert all(max(said) <= number < finished for number in numbers)
        assert report["filler"] == list(range(2000)) and len(log) == 501
        assert bool((tensors["number"] == meta["number"]).all())
    assert said  # something was finished between the kills


@pytest.mark.parametrize("call", ["write", "fsync", "replace", "chmod"])
def test_a_system_call_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, call):
    write_json(tmp_path / "report.json", {"number": 1})

    def failing(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    if call == "write":
        monkeypatch.setattr(files.os, "fdopen", lambda *_: open("/dev/full", "wb"))
    else:
        monkeypatch.setattr(files.os, call, failing)
    with pytest.raises(OSError, match="No space left on device; not written, an older file is kept: .*report.json"):
        write_json(tmp_path / "report.json", {"number": 2, "filler": list(range(9999))})
    assert json.loads((tmp_path / "report.json").read_text()) == {"number": 1}
    assert os.listdir(tmp_path) == ["report.json"]


def test_a_device_that_is_full_is_named():
    with pytest.raises(OSError, match="No space left on device; not written: '/dev/full'"):
        write_json("/dev/full", {"number": 2})
