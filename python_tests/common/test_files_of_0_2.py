"""What 0.2 wrote stays valid: checkpoints, training states, journals, reports. files/0.2/make.py made the files."""

import json
import shutil

import pytest
import torch
from torch import nn

import nft_ext as nft
from nft_ext.training import load
from support.paths import FILES

FOLDER = FILES / "0.2"


def network():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 6 * 6, 4))


@pytest.fixture
def folder(tmp_path):
    """A copy, since journals and states are written to."""
    return shutil.copytree(FOLDER, tmp_path / "old")


@pytest.fixture
def start():
    return torch.load(FOLDER / "start.pt", weights_only=True)


@pytest.fixture
def trained():
    model = network()
    model.load_state_dict(load(FOLDER / "net.safetensors")[0])
    return model


def test_a_journal_continues_with_the_same_chips(folder, start, trained):
    noisy = nft.convert(trained, nft.NVMDevice(sigma=0.1))
    data = (start["x"], start["y"])
    old = json.loads((folder / "report.json").read_text())
    with pytest.warns(UserWarning, match="journal.jsonl: .* of the network could not be checked"):
        report = nft.monte_carlo(noisy, data, runs=6, seed=1, progress=False, resume=folder / "journal.jsonl")
    assert any("begun with nft_ext 0.2.0" in note for note in report.notes)
    fresh = nft.monte_carlo(noisy, data, runs=6, seed=1, progress=False)
    assert fresh.accuracy.per_run.tolist() == report.accuracy.per_run.tolist()
    assert report.accuracy.per_run[:4].tolist() == old["metrics"]["accuracy"]["per_run"]
    assert set(old) <= set(report.to_dict())


def test_a_training_state_of_a_finished_run_gives_its_network(folder, start, trained):
    model = network()
    model.load_state_dict(start["start"])
    train, validation = (start["x"][:30], start["y"][:30]), (start["x"][30:], start["y"][30:])
    unchecked = "does not record network, .*These could not be checked"
    with pytest.warns(UserWarning, match="0.2.0 there"), pytest.warns(UserWarning, match=unchecked):
        history = nft.fit(
            model,
            nft.methods.NoiseInjection(sigma=0.1),
            train,
            validation,
            nvm=nft.NVMDevice(),
            epochs=2,
            batch_size=10,
            progress=False,
            state=folder / "net.state",
            checkpoint=folder / "net.safetensors",
        )
    assert len(history.rows) == 2
    for name, value in trained.state_dict().items():
        assert torch.equal(history.model.state_dict()[name], value), name
