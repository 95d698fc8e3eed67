"""The bounds between fused and programmed products on CUDA: how they are found, kept, read, and shown. Measuring needs a GPU."""

import json

import pytest
import torch

from nft_ext import build_info, choice, tune
from nft_ext.cli.main import main
from nft_ext.tune import Point

KEY = "Some GPU, compute capability 9.0, nft_ext 0.1.0, torch 2.13.0"
cuda = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch.cuda.is_available() is False")]


def bounds(columns=100):
    return {d: {t: columns + i for i, t in enumerate(choice.DTYPES)} for d in choice.DIRECTIONS}


@pytest.fixture(autouse=True)
def file(tmp_path, monkeypatch):
    monkeypatch.setenv("NFT_EXT_TUNING", str(tmp_path / "a" / "bounds.json"))
    return tmp_path / "a" / "bounds.json"


# ---- from times to a bound


def test_the_bound_is_where_the_library_begins_to_win():
    points = [Point(0, c, fused=c, library=200.0) for c in (16, 64, 128, 256, 512)]
    assert tune.best_bound(points) == 128


def test_never_and_always():
    assert tune.best_bound([Point(0, c, 2.0, 1.0) for c in (16, 64)]) == 0
    assert tune.best_bound([Point(0, c, 1.0, 2.0) for c in (16, 64)]) == 64


def test_several_layers_share_the_bound_that_costs_least_together():
    """One layer would have 32, the other 128; at 64 columns the first loses a fifth by fusing, the second gains a half."""
    first = [Point(0, 32, 1.0, 1.1), Point(0, 64, 1.2, 1.0), Point(0, 128, 1.5, 1.0)]
    second = [Point(1, 32, 1.0, 2.0), Point(1, 64, 1.0, 1.5), Point(1, 128, 1.0, 1.1)]
    assert tune.best_bound(first + second) == 64


def test_equally_good_bounds_give_the_smallest_and_no_points_are_refused():
    assert tune.best_bound([Point(0, 16, 1.0, 2.0), Point(0, 32, 1.0, 1.0)]) == 16
    with pytest.raises(ValueError, match="points: must hold at least one; got none"):
        tune.best_bound([])


# ---- the file


def test_what_is_written_is_read_back_and_other_keys_stay():
    choice.write("another", bounds(7), {"date": "then"})
    choice.write(KEY, bounds(), {"date": "now"})
    assert choice.read(KEY) == bounds() and choice.read("another") == bounds(7) and choice.read("a third") is None
    assert json.loads(choice.path().read_text())[KEY]["date"] == "now"
    assert [p.name for p in choice.path().parent.iterdir()] == ["bounds.json"]


def test_no_file_is_no_measurement():
    assert choice.read(KEY) is None


@pytest.mark.parametrize("text", ["{", "[]", '{"%s": {}}' % KEY, '{"%s": {"columns": {"forward": {}}}}' % KEY])
def test_a_file_that_cannot_be_used_is_named_and_not_used(text, file):
    file.parent.mkdir()
    file.write_text(text)
    if text == "[]":
        assert choice.read(KEY) is None  # holds no entry for this device
        return
    with pytest.warns(RuntimeWarning, match=f"{file}: must hold the result of `nft-ext tune`"):
        assert choice.read(KEY) is None


def test_bounds_are_whole_numbers_of_columns():
    wrong = bounds()
    wrong["forward"]["float16"] = -1
    with pytest.raises(ValueError, match=r"bounds, forward, float16: must be an integer in 0\.\.1073741824; got -1"):
        choice.write(KEY, wrong, {})
    with pytest.raises(ValueError, match="bounds: must have an entry input_gradient, float32"):
        choice.check({"forward": bounds()["forward"]})


def test_the_file_lies_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.delenv("NFT_EXT_TUNING")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert choice.path() == tmp_path / "nft_ext" / "fused_columns.json"


# ---- what is shown


def test_info_says_what_is_in_force(monkeypatch, capsys):
    assert main(["info"]) == 0
    assert "fused product" in capsys.readouterr().out
    monkeypatch.setattr(build_info, "cuda_failure", None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(choice, "apply", lambda index: [None, bounds()][index])
    assert choice.described() == (
        "device 0: forward up to 32/0/0, input gradient up to 0/0/0 columns a chip in float32/bfloat16/float16 (as measured on an H100; "
        "nft-ext tune measures here); "
        "device 1: forward up to 100/101/102, input gradient up to 100/101/102 columns a chip in float32/bfloat16/float16 (measured)")


@pytest.mark.skipif(build_info.cuda_failure is None, reason="this machine has CUDA: there is something to tune")
def test_without_cuda_there_is_nothing_to_tune(capsys):
    assert main(["tune"]) == 1
    assert "nft-ext tune: nothing to tune on this machine, because " in capsys.readouterr().err


def test_a_device_that_is_not_there_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(build_info, "cuda_failure", None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert main(["tune", "--device", "3"]) == 1
    assert "--device: must be an integer in 0..0; got 3" in capsys.readouterr().err


# ---- on a device


def on_cuda(test):
    for mark in cuda:
        test = mark(test)
    return test


@on_cuda
@pytest.mark.parametrize("columns", [0, choice.MOST])
def test_both_ways_give_the_same_product(columns):
    from nft_ext import NVMDevice, noise_key, noisy_linear

    torch.manual_seed(0)
    x, w = torch.randn(64, 128, device="cuda"), torch.randn(96, 128, device="cuda")
    key = noise_key(0, range(2), device="cuda")
    before = choice.apply(0) or choice.DEFAULT
    try:
        choice.put(0, tune._everywhere(columns))
        found = noisy_linear(x, w, nvm=NVMDevice(), key=key)
    finally:
        choice.put(0, before)
    expected = noisy_linear(x.cpu(), w.cpu(), nvm=NVMDevice(), key=key.cpu())
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-3, atol=1e-3)


@on_cuda
def test_tuning_measures_every_type_and_direction_and_is_kept():
    before = choice.apply(0) or choice.DEFAULT
    found, records = tune.tune(0)
    choice.check(found)
    assert {(r["direction"], r["dtype"]) for r in records} == {(d, t) for d in choice.DIRECTIONS for t in choice.DTYPES}
    assert all(r["fused"] > 0 and r["library"] > 0 for r in records)
    try:
        tune.keep(0, found, records)
        assert choice.apply(0) == found
    finally:
        choice.put(0, before)
        choice.apply.cache_clear()
