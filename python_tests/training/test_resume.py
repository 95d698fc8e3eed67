"""Runs that are killed continue as if nothing had happened; a state of another run is refused."""

import csv
import json
import math
import multiprocessing
import random
import resource
import time

import pytest
import torch

import nft_ext as nft
from nft_ext import methods
from nft_ext._common import files
from support.training_runs import (
    TRAIN,
    VALIDATION,
    Stop,
    at_each_step,
    child,
    forget_hooks,
    jitter,
    outcome,
    run,
    small_net,
    stopping_at,
    timeless,
)

STEPS = 18  # three epochs of six


@pytest.fixture(autouse=True)
def no_hook_is_left():
    yield
    forget_hooks()


def stopped_then_continued(path, step, name="noise", **options):
    with pytest.raises(Stop):
        run(name, augment=stopping_at(step), state=path, **options)
    return run(name, augment=jitter, state=path, **options)


@pytest.mark.parametrize("name", ["vanilla", "noise", "ovf", "irs"])
@pytest.mark.parametrize("step", [4, 7])
def test_every_method_continues_bit_for_bit(tmp_path, name, step):
    continued = stopped_then_continued(tmp_path / "state", step, name, save_every=0)
    assert outcome(continued) == outcome(run(name, augment=jitter))


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "sgd"},
        {"precision": "bfloat16"},
        {"accumulate": 3},
        {"channels_last": True, "weight_decay": 1e-3},
    ],
    ids=str,
)
def test_every_recipe_continues_bit_for_bit(tmp_path, options):
    continued = stopped_then_continued(tmp_path / "state", 9, save_every=0, **options)
    assert outcome(continued) == outcome(run(augment=jitter, **options))


def test_steps_after_the_last_save_are_done_again(tmp_path):
    steps = []
    with pytest.raises(Stop):
        run(augment=stopping_at(10), state=tmp_path / "state", save_every=3600)  # saved after the first epoch's 6 steps
    at_each_step(steps.append)
    continued = run(augment=jitter, state=tmp_path / "state", save_every=3600)
    assert len(steps) == STEPS - 6
    assert outcome(continued) == outcome(run(augment=jitter))


def test_ctrl_c_can_be_continued(tmp_path):
    history = run(augment=stopping_at(9, KeyboardInterrupt), state=tmp_path / "state", save_every=0)
    assert history.interrupted
    continued = run(augment=jitter, state=tmp_path / "state")
    assert not continued.interrupted and outcome(continued) == outcome(run(augment=jitter))


def test_a_run_that_is_over_returns_at_once_and_mends_its_files(tmp_path):
    paths = {"state": tmp_path / "state", "log": tmp_path / "log.csv", "checkpoint": tmp_path / "best.safetensors"}
    first = run(augment=jitter, **paths)
    log, (weights, meta) = paths["log"].read_bytes(), nft.training.load(paths["checkpoint"])
    for name in ("log", "checkpoint"):
        paths[name].unlink()
    again = run(augment=stopping_at(1), **paths)  # one step would fail
    assert outcome(again) == outcome(first) and again.rows == first.rows
    mended, mended_meta = nft.training.load(paths["checkpoint"])
    assert paths["log"].read_bytes() == log and mended_meta == meta
    assert all(torch.equal(mended[key], value) for key, value in weights.items())
    assert again.seconds >= sum(row["seconds"] for row in first.rows)


def test_resume_false_begins_anew(tmp_path):
    run(augment=jitter, state=tmp_path / "state", epochs=1)
    with pytest.raises(Stop):
        run(augment=stopping_at(1), state=tmp_path / "state", epochs=1, resume=False)


def begin(folder, name, options, step):
    """`training_runs.child` in a process forked from one that has imported torch and done nothing else."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch._dynamo", "nft_ext"])  # optimizers import torch._dynamo, late and slowly
    step = context.Semaphore(0) if step is None else step
    process = context.Process(target=child, args=(folder, name, step, options))
    process.start()
    return process, step


def kill_after(process, steps, count, delay):
    """kill -9 as the process has done `count` more steps and `delay` seconds of the next, or its save."""
    for _ in range(count):
        steps.acquire(timeout=60)
    time.sleep(delay)
    process.kill()
    process.join(60)
    return process.exitcode


@pytest.mark.slow
def test_kill_9_at_random_moments_changes_nothing(tmp_path):
    name, chance = "irs", random.Random(4)
    options = {"save_every": 0, "epochs": 6}
    killed = 0
    for _ in range(4):
        process, steps = begin(tmp_path, name, options, None)
        killed += kill_after(process, steps, chance.randint(1, 8), chance.random() * 0.02) == -9
    process, _ = begin(tmp_path, name, options, None)
    process.join(60)
    assert process.exitcode == 0 and killed == 4
    (tmp_path / "whole").mkdir()
    process, _ = begin(tmp_path / "whole", name, options, None)
    process.join(60)
    found, expected = ((folder / "outcome.json").read_text() for folder in (tmp_path, tmp_path / "whole"))
    assert found == expected
    for folder in (tmp_path, tmp_path / "whole"):
        assert sorted(p.name for p in folder.iterdir() if p.is_file()) == [
            "best.safetensors",
            "log.csv",
            "outcome.json",
            "state",
        ]
    one, other = (nft.training.load(folder / "best.safetensors") for folder in (tmp_path, tmp_path / "whole"))
    assert all(torch.equal(one[0][key], value) for key, value in other[0].items())
    assert timeless([one[1]["validation"]]) == timeless([other[1]["validation"]])
    rows = [timeless(csv.DictReader(open(folder / "log.csv"))) for folder in (tmp_path, tmp_path / "whole")]
    assert rows[0] == rows[1] and len(rows[0]) == 6


@pytest.mark.parametrize("moment", ["before the rename", "after the rename"])
def test_a_stop_around_the_rename_changes_nothing(tmp_path, monkeypatch, moment):
    replace, count = files.os.replace, [0]

    def stopping(source, target):
        count[0] += 1
        if moment == "after the rename":
            replace(source, target)
        if count[0] == 8:
            patch.setattr(files.os, "unlink", lambda path: None)  # a kill cleans nothing up
            raise Stop
        if moment == "before the rename":
            replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", stopping)
        with pytest.raises(Stop):
            run(augment=jitter, state=tmp_path / "state", save_every=0)
    kinds = sorted(path.suffix for path in tmp_path.iterdir())
    assert kinds == (["", ".lock", ".tmp"] if moment == "before the rename" else ["", ".lock"])
    assert outcome(run(augment=jitter, state=tmp_path / "state")) == outcome(run(augment=jitter))
    assert [p.name for p in tmp_path.iterdir()] == ["state"]


@pytest.mark.parametrize(
    "options, words",
    [
        ({"lr": 2e-2}, "recipe.lr: 0.01 there, 0.02 here"),
        ({"seed": 1}, "seed: 0 there, 1 here"),
        ({"name": "ovf"}, "method.name: noise there, ovf here"),
        ({"nvm": nft.NVMDevice(weight_bits=6, device_bits=3)}, "nvm.weight_bits: 8 there, 6 here"),
        ({"batch_norm": False}, r"model.1.weight: float32\[8\] there, nothing here"),
        ({"augment": None}, "augment: jitter there, None here"),
        ({"keep": "last"}, "keep: nothing there, last here"),
        ({"epochs": 4, "accumulate": 2}, "recipe.epochs: 3 there, 4 here; recipe.accumulate: 1 there, 2 here"),
    ],
)
def test_another_configuration_is_refused_and_the_difference_shown(tmp_path, options, words):
    run(augment=jitter, state=tmp_path / "state", epochs=3)
    before = (tmp_path / "state").read_bytes()
    with pytest.raises(ValueError, match="state: must have the same configuration.*" + words):
        run(**{"augment": jitter, "state": tmp_path / "state"} | options)
    assert (tmp_path / "state").read_bytes() == before


def test_other_data_is_refused(tmp_path):
    images, labels = TRAIN
    net, method, options = small_net(), methods.Vanilla(), {"epochs": 1, "progress": False, "batch_size": 16}
    nft.fit(net, method, (images, labels), VALIDATION, state=tmp_path / "state", **options)
    with pytest.raises(ValueError, match=r"data.train.sha256: \w{12}\.\.\. there, \w{12}\.\.\. here"):
        nft.fit(net, method, (images + 1e-6, labels), VALIDATION, state=tmp_path / "state", **options)


@pytest.mark.parametrize("content", [b"", b"nonsense", None], ids=["empty", "nonsense", "flipped bit"])
def test_a_corrupt_state_is_named(tmp_path, content):
    path = tmp_path / "state"
    run(augment=jitter, state=path, epochs=1)
    whole = bytearray(path.read_bytes())
    whole[-5] ^= 1
    path.write_bytes(bytes(whole) if content is None else content)
    with pytest.raises(ValueError, match="state: must name the state of a training.*corrupt.*state"):
        run(augment=jitter, state=path, epochs=1)


def test_a_checkpoint_is_no_state(tmp_path):
    run(augment=jitter, checkpoint=tmp_path / "best.safetensors", epochs=1)
    with pytest.raises(ValueError, match="this safetensors file is not one"):
        run(augment=jitter, state=tmp_path / "best.safetensors", epochs=1)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"state": "/nowhere/at/all/state"}, "state: must lie in an existing folder"),
        ({"state": "state", "save_every": -1.0}, "save_every: must be a finite number >= 0"),
    ],
)
def test_bad_options_are_refused(tmp_path, monkeypatch, options, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        run(augment=stopping_at(1), **options)


def test_another_environment_gets_a_warning(tmp_path, threads):
    threads(1)
    run(augment=jitter, state=tmp_path / "state", epochs=1)
    threads(2)
    with pytest.warns(UserWarning, match="written in another environment.*threads: 1 there, 2 here"):
        run(augment=jitter, state=tmp_path / "state", epochs=1)


def test_a_full_disk_stops_the_run_and_keeps_the_old_state(tmp_path):
    path = tmp_path / "state"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def disk_full_in_the_second_epoch(step):
        if step == 8:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))

    at_each_step(disk_full_in_the_second_epoch)
    try:
        with pytest.raises(OSError, match="not written, an older file is kept: .*state") as error:
            run(augment=jitter, state=path, save_every=0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert error.value.filename == str(path)
    assert [p.name for p in tmp_path.iterdir()] == ["state"]
    assert outcome(run(augment=jitter, state=path)) == outcome(run(augment=jitter))


@pytest.mark.parametrize("options", [{}, {"precision": "bfloat16"}, {"accumulate": 2}], ids=str)
def test_a_nan_loss_leaves_a_good_state_and_checkpoint(tmp_path, monkeypatch, options):
    """Eight steps, then NaN; continued without it, the run ends as it should have."""
    calls, randn_like = [], torch.randn_like

    def nan_from_the_ninth(x):
        calls.append(x)
        return randn_like(x) * (1.0 if len(calls) <= 8 * options.get("accumulate", 1) else math.nan)

    paths = {"state": tmp_path / "state", "checkpoint": tmp_path / "best.safetensors"}
    words = "the loss became NaN .* in epoch 2 .*epoch 1 are kept"
    with monkeypatch.context() as patch, pytest.raises(nft.training.NonFiniteLoss, match=words) as error:
        patch.setattr(torch, "randn_like", nan_from_the_ninth)
        run(augment=jitter, save_every=0, **paths, **options)
    weights, meta = nft.training.load(paths["checkpoint"])
    assert meta["epoch"] == 1 and all(bool(t.isfinite().all()) for t in weights.values())
    assert all(torch.equal(weights[key], value) for key, value in error.value.history.model.state_dict().items())
    assert outcome(run(augment=jitter, **paths, **options)) == outcome(run(augment=jitter, **options))


def test_the_state_is_plain_tensors_and_json(tmp_path):
    with pytest.raises(Stop):
        run("irs", augment=stopping_at(9), state=tmp_path / "state", save_every=0)
    content = (tmp_path / "state").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    facts = json.loads(header["__metadata__"]["meta"])["facts"]
    assert (facts["epoch"], facts["step"], len(facts["rows"])) == (1, 2, 1)
    for name in (
        "model/backbone.0.weight",
        "model/snapshots.0.fc1.weight",
        "best/1.running_mean",
        "total",
        "optimizer/0.exp_avg_sq",
        "optimizer/0.step",
    ):
        assert name in header
