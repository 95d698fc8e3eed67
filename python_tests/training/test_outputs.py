"""The files of a training: checked before any step, each a file of its own, written by one training at a time."""

import os
import threading

import pytest
import torch

import nft_ext as nft
from nft_ext._common.file_claim import claimed
from support.training_runs import (
    TRAIN,
    VALIDATION,
    Stop,
    jitter,
    method_named,
    outcome,
    run,
    small_net,
    stopping_at,
)


def trained(net, augment):
    """One epoch of a network that exists already: making one seeds torch's generators."""
    options = {"epochs": 1, "batch_size": 16, "lr": 1e-2, "progress": False, "validation_chips": 2}
    return nft.fit(net, method_named("noise"), TRAIN, VALIDATION, augment=augment, **options)


def never(x):
    pytest.fail("a step was made")


@pytest.mark.parametrize(
    "paths, words",
    [
        ({"log": "a", "checkpoint": "a"}, "log: must name another file than checkpoint; got .*a$"),
        ({"state": "a", "checkpoint": "link"}, "checkpoint: must name another file than state; got .*link$"),
        ({"log": "folder"}, "log: must name a file, not a folder"),
        ({"state": "missing/a"}, "state: must lie in an existing folder"),
        ({"checkpoint": "dangling"}, "checkpoint: must lie in an existing folder"),
        ({"checkpoint": "x" * 300}, "checkpoint: must lie in a writable folder .File name too long"),
        ({"state": "pipe"}, "state: must name a regular file, not a pipe or a device"),
        ({"tensorboard": "file"}, "tensorboard: must be a folder or the name of a new one"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused_before_any_step(tmp_path, monkeypatch, paths, words):
    monkeypatch.setattr("nft_ext.training.outputs.summary_writer", lambda: pytest.fail("TensorBoard began"))
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    (tmp_path / "dangling").symlink_to(tmp_path / "missing" / "file")
    os.mkfifo(tmp_path / "pipe")
    before = sorted(os.listdir(tmp_path))
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        run(augment=never, **{name: tmp_path / path for name, path in paths.items()})
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize("name", ["state", "checkpoint", "log"])
def test_a_file_that_another_training_writes_is_refused(tmp_path, name):
    with claimed(name, tmp_path / "a"):
        with pytest.raises(BlockingIOError, match=f"{name}: another training is writing this file; .*a'$"):
            run(augment=never, **{name: tmp_path / "a"})
    assert os.listdir(tmp_path) == []
    run(epochs=1, **{name: tmp_path / "a"})
    assert os.listdir(tmp_path) == ["a"]


def test_the_state_is_there_before_any_other_file(tmp_path):
    """A training that is killed at once can still be told from one that never began."""
    with pytest.raises(Stop):
        run(augment=stopping_at(1), state=tmp_path / "state", checkpoint=tmp_path / "best")
    assert os.listdir(tmp_path) == ["state"]
    assert outcome(run(augment=jitter, state=tmp_path / "state")) == outcome(run(augment=jitter))


def test_two_trainings_in_threads_are_refused_and_one_is_as_alone(tmp_path):
    """Both would draw from torch's generators, and neither would give what its seed says."""
    alone = outcome(run(augment=jitter, epochs=1))
    inside, end, found, nets = threading.Event(), threading.Event(), [], [small_net(), small_net()]

    def waiting(x):
        inside.set()
        assert end.wait(60)
        return jitter(x)

    first = threading.Thread(target=lambda: found.append(outcome(trained(nets[0], waiting))))
    first.start()
    assert inside.wait(60)
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="fit: must not run in two threads of one process.*start a process for each"):
        trained(nets[1], never)
    assert torch.equal(torch.get_rng_state(), before)
    end.set()
    first.join(60)
    assert found == [alone]
    assert outcome(run(augment=jitter, epochs=1)) == alone


def test_a_training_inside_a_training_is_no_second_thread():
    inner, nets = [], [small_net(), small_net()]

    def nested(x):
        if not inner:
            inner.append(outcome(trained(nets[1], jitter)))
        return jitter(x)

    outer = outcome(trained(nets[0], nested))
    assert inner == [outer]
