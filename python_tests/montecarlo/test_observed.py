"""What a report says about noisy layers that did not run and matrices without noise."""

import json
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional

import nft_ext as nft
from nft_ext.montecarlo import MonteCarloReport

NVM = nft.NVMDevice(sigma=0.2)
generator = torch.Generator().manual_seed(4)
DATA = torch.randn(60, 6, generator=generator), torch.randint(3, (60,), generator=generator)


class Reads(nn.Module):
    """Reads the weight of a layer that it does not call."""

    def __init__(self):
        super().__init__()
        self.read, self.called = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.called(functional.linear(x, self.read.weight))


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def evaluate(model, **options):
    return nft.monte_carlo(model, DATA, **({"runs": 4, "progress": False} | options))


def test_a_report_names_noisy_layers_that_did_not_run(tmp_path):
    with pytest.warns(UserWarning, match=r"monte_carlo: these noisy layers did not run .*\(66\.7 % of .*: read$"):
        report = evaluate(nft.convert(Reads(), NVM))
    assert report.observed == {"never_ran": ["read"], "share": 36 / 54, "read": ["read"], "matrices": []}
    assert "note: these noisy layers did not run in a pass of 8 images, so their noise had no effect" in report.table()
    report.to_json(tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text())["observed"]["never_ran"] == ["read"]
    assert MonteCarloReport.from_json(tmp_path / "r.json").observed == report.observed


def test_a_report_names_matrices_that_no_crossbar_holds():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(6, 6))

        def forward(self, x):
            return x @ self.weight

    with pytest.warns(UserWarning, match=r"^convert: 33\.3 % .*digital: 0\.weight \(Own, 36: unknown class\)"):
        noisy = nft.convert(nn.Sequential(Own(), nn.Linear(6, 3)), NVM)
    report = evaluate(noisy)
    assert report.observed["matrices"] == ["0.weight"] and report.coverage["share"] == 18 / 54
    assert "33.3 % of multiply-accumulates; digital: 0.weight (Own, 36: unknown class)" in " ".join(
        report.table().split()
    )


def test_a_report_names_weights_that_a_layer_without_noise_shares():
    model = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False), nn.Linear(6, 3))
    model[1].weight = model[0].weight
    report = evaluate(nft.convert(model, NVM, exclude="1"))
    assert any(note.endswith("share the weights of these noisy layers: 0 (with 1 (Linear))") for note in report.notes)


def test_nothing_is_said_where_all_layers_ran():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = evaluate(nft.convert(network(), NVM))
    assert report.observed == {"never_ran": [], "share": 0.0, "read": [], "matrices": []} and report.notes == []


def test_noisy_layers_in_plain_lists_are_refused():
    """No context reaches them, so every pass would run other chips."""
    model = nft.convert(network(), NVM)
    model[1].hidden = [nft.NoisyLinear(8, 8, nvm=NVM)]
    with pytest.raises(ValueError, match=r"model: must hold its noisy layers in nn\.ModuleList .*; got 1\.hidden"):
        evaluate(model)
