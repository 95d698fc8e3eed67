"""A command checks all its output files before any work, gives each its own name, and replaces nothing by accident."""

import os
from pathlib import Path

import pytest
import torch

import nft_ext as nft
from nft_ext.cli import main
from nft_ext.cli.outputs import beside
from nft_ext.montecarlo.execution.chip_evaluator import ChipEvaluator
from nft_ext.training import save

FEW = ["--runs", "2", "--limit", "10"]
MODEL = {"name": "vgg8", "num_classes": 10, "in_channels": 1, "width": 0.0625}


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    save(tmp_path / "net.safetensors", nft.models.build(**MODEL), {"model": MODEL, "dataset": "digits"})
    return str(tmp_path / "net.safetensors")


@pytest.fixture
def no_work(monkeypatch):
    """A chip or a training step fails the test."""
    monkeypatch.setattr(ChipEvaluator, "tallies", lambda *_: pytest.fail("a chip ran"))
    monkeypatch.setattr("nft_ext.training.fit", lambda *_, **__: pytest.fail("a training began"))


@pytest.fixture
def trainings(monkeypatch):
    """The options of every training that began."""
    seen = []

    def fit(*_, **options):
        seen.append(options)
        raise KeyboardInterrupt

    monkeypatch.setattr("nft_ext.training.fit", fit)
    return seen


@pytest.mark.parametrize(
    "out, log",
    [
        ("net.safetensors", "net.csv"),
        ("net", "net.csv"),
        ("ovf-0.2", "ovf-0.2.csv"),
        ("ovf-0.3", "ovf-0.3.csv"),
        ("ovf-0.3.safetensors", "ovf-0.3.csv"),
        ("a.state", "a.state.csv"),
        ("a.csv", "a.csv.csv"),
    ],
)
def test_a_file_beside_a_checkpoint_has_a_name_of_its_own(out, log):
    assert beside(Path("folder") / out, ".csv") == Path("folder") / log


@pytest.mark.parametrize("command", ["evaluate", "sweep"])
@pytest.mark.parametrize(
    "out, words", [("file/out", "must be a folder"), ("taken", "must name a file, not a folder")], ids=["file", "taken"]
)
def test_an_out_that_cannot_be_written_is_refused_before_any_chip(
    checkpoint, tmp_path, capsys, no_work, command, out, words
):
    (tmp_path / "file").touch()
    for name in ("net-sigma0.1.csv", "sweep.png"):
        (tmp_path / "taken" / name).mkdir(parents=True)
    assert main([command, checkpoint, "--sigma", "0.1", *FEW, "--out", str(tmp_path / out)]) == 1
    assert f"--out: {words}" in capsys.readouterr().err


@pytest.fixture
def no_matplotlib(monkeypatch):
    def missing():
        raise ImportError("plots need matplotlib: pip install matplotlib")

    for module in ("report_plot", "sweep_plot"):
        monkeypatch.setattr(f"nft_ext.montecarlo.report.{module}.require_matplotlib", missing)


def test_close_sigmas_have_files_of_their_own_and_equal_ones_are_refused(checkpoint, tmp_path, capsys, no_matplotlib):
    close = ["0.1", "0.1000001"]
    assert main(["evaluate", checkpoint, "--sigma", *close, *FEW, "--out", str(tmp_path / "out")]) == 0
    found = {nft.MonteCarloReport.from_json(path).sigma for path in (tmp_path / "out").glob("*.json")}
    assert found == {0.1, 0.1000001}
    assert main(["evaluate", checkpoint, "--sigma", "0.1", "0.10", *FEW]) == 1
    assert "--sigma: must hold each value once" in capsys.readouterr().err


def test_without_matplotlib_every_number_is_written(checkpoint, tmp_path, capsys, no_matplotlib):
    assert main(["evaluate", checkpoint, "--sigma", "0.1", "0.2", *FEW, "--out", str(tmp_path / "out")]) == 0
    names = {f"net-sigma{sigma}.{kind}" for sigma in ("0.1", "0.2") for kind in ("csv", "json")}
    assert set(os.listdir(tmp_path / "out")) == names
    assert "note: no plot: plots need matplotlib" in capsys.readouterr().err
    assert main(["sweep", checkpoint, "--sigma", "0.1", *FEW, "--out", str(tmp_path / "sweep")]) == 0
    assert set(os.listdir(tmp_path / "sweep")) == {"sweep.csv", "sweep.json"}


@pytest.mark.parametrize("file", ["net.state", "net.safetensors", "net.csv"])
def test_a_training_of_the_same_name_is_refused_without_resume_or_restart(tmp_path, capsys, trainings, file):
    (tmp_path / file).write_bytes(b"of an earlier training")
    out = str(tmp_path / "net.safetensors")
    assert main(["train", out]) == 1
    assert f"add --resume to continue it or --restart to replace it; got {tmp_path / file}" in capsys.readouterr().err
    assert main(["train", out, "--restart"]) == 130 and not trainings[0]["resume"]
    status = main(["train", out, "--resume"])
    assert (status, len(trainings)) == ((130, 2) if file == "net.state" else (1, 1))
    assert (tmp_path / file).read_bytes() == b"of an earlier training"


def test_a_search_of_beta_finds_the_states_of_an_earlier_one(tmp_path, capsys, no_work):
    (tmp_path / "net-beta0.01.state").touch()
    assert main(["train", str(tmp_path / "net"), "--method", "ovf", "--beta", "search"]) == 1
    assert "net-beta0.01.state" in capsys.readouterr().err


def test_a_state_under_the_name_of_an_earlier_version_is_not_passed_over(tmp_path, capsys, no_work):
    (tmp_path / "ovf-0.state").touch()
    assert main(["train", str(tmp_path / "ovf-0.2"), "--resume"]) == 1
    assert "must find the state under its present name" in capsys.readouterr().err


def test_a_training_does_not_replace_the_table_of_its_device(tmp_path, capsys, no_work):
    (tmp_path / "net.csv").write_text("level,mean,std\n0,0,0.1\n1,1,0.1\n2,2,0.1\n3,3,0.1\n")
    table = ["--table", str(tmp_path / "net.csv")]
    assert main(["train", str(tmp_path / "net.safetensors"), *table, "--restart"]) == 1
    assert "must name another file than --table" in capsys.readouterr().err


def test_an_out_of_train_that_cannot_be_written_is_refused_before_any_step(tmp_path, capsys, no_work):
    (tmp_path / "net.state").mkdir()
    assert main(["train", str(tmp_path / "net.safetensors")]) == 1
    assert "OUT: must name a file, not a folder" in capsys.readouterr().err
    assert main(["train", str(tmp_path / ("x" * 250))]) == 1
    assert "OUT: must lie in a writable folder (File name too long)" in capsys.readouterr().err
