"""Working a grid off: nothing twice, nothing lost, several processes at once, and a training that diverges."""

import dataclasses
import fcntl
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from nft_ext.reproduce import run as grid_run
from nft_ext.reproduce import work as at_work
from nft_ext.reproduce.estimate import seconds
from nft_ext.reproduce.grid import cells
from nft_ext.reproduce.panels import Scale
from nft_ext.reproduce.store import Store
from nft_ext.training import NonFiniteLoss

TINY = Scale(
    width=0.0625,
    epochs=1,
    batch_size=32,
    lr=1e-3,
    train_images=60,
    test_images=20,
    runs=2,
    validation_chips=2,
    sigmas=(0.1, 0.3),
)


def tiny(names, seeds=1, sigmas=(0.1,), experiment="figure3"):
    return cells(experiment, "vgg8-digits", TINY, sigmas, names, seeds, control=False)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


@pytest.fixture
def counted(monkeypatch):
    """Keys of the cells that were worked on, in order."""
    keys, real = [], at_work.work

    def work(cell, *arguments, **options):
        keys.append(cell.key)
        return real(cell, *arguments, **options)

    monkeypatch.setattr(grid_run, "work", work)
    monkeypatch.setattr(at_work, "work", work)
    return keys


def test_a_finished_cell_holds_what_the_report_needs(store):
    grid = tiny(("vanilla", "irs"), sigmas=(0.1, 0.3))
    assert grid_run.run(grid, store, None) == grid_run.Outcome(3, 0, False)
    vanilla, *irs = map(store.read, grid)
    assert [p["sigma"] for p in vanilla["points"]] == [0.1, 0.3] and vanilla["config"]["sigma"] is None
    assert [p["sigma"] for found in irs for p in found["points"]] == [0.1, 0.3]
    for found in (vanilla, *irs):
        assert found["training"]["best"]["epoch"] == 1 and found["training"]["diverged"] is None
        assert (
            0 <= found["clean"] <= 1 and found["versions"]["torch"] == str(torch.__version__) and found["seconds"] > 0
        )
        for point in found["points"]:
            assert len(point["accuracy"]) == len(point["ekl_per_chip"]) == 2 and point["images"] == 20
            assert point["at_temperature"]["temperature"] > 0 and point["at_temperature"]["nll"] > 0
    assert json.loads((store.cells / f"{grid[0].key}.json").read_text())["key"] == grid[0].key
    assert list(store.running.glob("*.safetensors")) == [] and list(store.checkpoints.iterdir()) == []


def test_nothing_is_computed_twice(store, counted):
    grid = tiny(("noise",))
    grid_run.run(grid, store, None)
    before = {p: p.stat().st_mtime_ns for p in store.cells.iterdir()}
    assert grid_run.run(grid, store, None) == grid_run.Outcome(0, 0, False)
    assert {p: p.stat().st_mtime_ns for p in store.cells.iterdir()} == before and len(counted) == 1


def test_the_same_cell_gives_the_same_figures(tmp_path):
    grid = tiny(("ovf",))
    found = []
    for name in ("a", "b"):
        store = Store(tmp_path / name)
        grid_run.run(grid, store, None)
        found.append(store.read(grid[0]))
    assert found[0]["points"] == found[1]["points"] and found[0]["clean"] == found[1]["clean"]


def test_an_interrupt_keeps_what_is_done_and_the_next_call_goes_on(store, counted, monkeypatch):
    grid = tiny(("noise", "ovf"))
    real = at_work.monte_carlo

    def interrupted(*arguments, **options):
        if len(counted) == 2:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(at_work, "monte_carlo", interrupted)
    assert grid_run.run(grid, store, None) == grid_run.Outcome(1, 0, True)
    assert store.read(grid[0]) is not None and store.read(grid[1]) is None
    monkeypatch.setattr(at_work, "monte_carlo", real)
    assert grid_run.run(grid, store, None) == grid_run.Outcome(1, 0, False)
    assert counted == [grid[0].key, grid[1].key, grid[1].key]


def test_a_cell_another_process_holds_is_left_to_it(store, counted):
    grid = tiny(("noise", "irs"))
    with store.claimed(grid[0]) as mine:
        assert mine
        assert grid_run.run(grid, store, None) == grid_run.Outcome(1, 1, False)
    assert counted == [grid[1].key]


def test_the_lock_file_of_a_dead_process_locks_nothing(store, counted):
    grid = tiny(("noise",))
    store.running.joinpath(f"{grid[0].key}.lock").write_text("left behind")
    assert grid_run.run(grid, store, None).computed == 1


def test_a_training_that_diverges_is_a_result_and_the_others_go_on(store, monkeypatch):
    grid = tiny(("noise", "irs"))
    real = at_work.fit

    def fit(model, method, *arguments, **options):
        history = real(model, method, *arguments, **options)
        if method.name == "noise":
            raise NonFiniteLoss("the loss became NaN or infinite in epoch 1", history)
        return history

    monkeypatch.setattr(at_work, "fit", fit)
    assert grid_run.run(grid, store, None).computed == 2
    assert "NaN" in store.read(grid[0])["training"]["diverged"] and store.read(grid[1])["training"]["diverged"] is None


@pytest.mark.parametrize(
    "selection, validation, trained, judged, keep",
    [
        ("validation", 0.1, 54, 6, "best"),
        ("last", 0.1, 54, 6, "last"),
        ("published", 0.1, 54, 20, "published"),
        ("published", 0.0, 60, 20, "published"),
        ("last", 0.0, 60, 20, "last"),
    ],
)
def test_the_epoch_is_selected_as_the_scale_says_and_does_not_change_the_training_images(
    store, monkeypatch, selection, validation, trained, judged, keep
):
    (cell,) = tiny(("noise",))
    seen, real = [], at_work.fit

    def fit(model, method, train, validation, **options):
        seen.append((len(train), len(validation), options["keep"]))
        return real(model, method, train, validation, **options)

    monkeypatch.setattr(at_work, "fit", fit)
    other = dataclasses.replace(cell, scale=cell.scale.replace(selection=selection, validation=validation))
    assert grid_run.run([other], store, None).computed == 1
    assert seen == [(trained, judged, keep)]


def test_pretrained_networks_begin_from_one_vanilla_training(store, counted):
    grid = [c for c in tiny(None, experiment="table2") if "50/200" in c.variant or c.variant == "vanilla"]
    assert [c.variant for c in grid] == ["vanilla", "ovf pretrained, 50/200 epochs", "irs pretrained, 50/200 epochs"]
    grid_run.run(grid[1:], store, None)  # a shard without the vanilla cell trains it nevertheless, once
    assert sorted(counted) == sorted(c.key for c in grid)
    assert store.checkpoint(grid[0]).exists() and store.read(grid[0]) is not None


def test_a_checkpoint_of_a_training_cut_short_is_not_begun_from(store, counted):
    vanilla, tuned = [
        c for c in tiny(None, experiment="table2") if c.variant in ("vanilla", "ovf pretrained, 50/200 epochs")
    ]
    store.checkpoint(vanilla).write_bytes(b"half")
    grid_run.run([tuned], store, None)
    assert vanilla.key in counted and store.read(tuned) is not None


def test_a_damaged_result_is_named(store):
    (cell,) = tiny(("noise",))
    path = store.cells / f"{cell.key}.json"
    path.write_text("{")
    with pytest.raises(ValueError, match=cell.key):
        grid_run.run([cell], store, None)


def test_results_of_another_configuration_are_counted_not_used(store):
    one, other = tiny(("noise",)), tiny(("noise",), sigmas=(0.3,))
    grid_run.run(one, store, None)
    assert store.read(other[0]) is None and store.others(other) == 1 and store.others(one) == 0


def test_the_estimate_knows_every_cell_and_sees_more_epochs():
    grid = tiny(("vanilla", "ovf"))
    short = seconds(grid, None)
    longer = seconds(
        cells("figure3", "vgg8-digits", TINY.replace(epochs=100), (0.1,), ("vanilla", "ovf"), 1, control=False), None
    )
    assert set(short) == {c.key for c in grid} and all(v > 0 for v in short.values())
    assert sum(longer.values()) > 5 * sum(short.values())


def command(out, *more):
    return [
        sys.executable,
        "-m",
        "nft_ext.cli",
        "reproduce",
        "figure3",
        "--preset",
        "smoke",
        "--panel",
        "vgg8-digits",
        "--methods",
        "noise",
        "--out",
        str(out),
        *more,
    ]


def locks(out):
    """The locks of the cells that have begun; those of their trainings' files begin with a dot."""
    return [path for path in (out / "running").glob("*.lock") if not path.name.startswith(".")]


def quiet(out):
    """Whether no process holds a cell of `out`."""
    for path in locks(out):
        with open(path) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
    return True


def wait_for(condition, what, limit=60.0):
    end = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < end, f"no {what} within {limit:g} s"
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_stopping_the_command_stops_its_processes(tmp_path, how):
    process = subprocess.Popen(
        command(tmp_path, "--jobs", "2", "--epochs", "2000", "--seeds", "2"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        wait_for(lambda: len(locks(tmp_path)) == 2, "two cells begun")
        os.kill(process.pid, how)
        status = process.wait(60)
        wait_for(lambda: quiet(tmp_path), "end of the work")
    finally:
        process.kill()
    assert status == (130 if how != signal.SIGKILL else -signal.SIGKILL)
    assert list((tmp_path / "cells").iterdir()) == []
