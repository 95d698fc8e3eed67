"""Common chips: wrapped networks share them with the bare one, and a sweep names layers with chips of their own."""

import json

import numpy as np
import torch
from torch import nn

import nft_ext as nft

NVM = nft.NVMDevice(sigma=0.2)
generator = torch.Generator().manual_seed(4)
DATA = torch.randn(60, 6, generator=generator), torch.randint(3, (60,), generator=generator)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def sweep(models):
    return nft.sweep(models, DATA, [0.1], runs=4, progress=False)


def test_wrapped_networks_share_the_chips_of_the_bare_one():
    models = {
        "bare": nft.convert(network(), NVM),
        "parallel": nft.convert(nn.DataParallel(network()), NVM),
        "compiled": nft.convert(torch.compile(network(), backend="eager"), NVM),
    }
    found = sweep(models)
    assert found.notes == []
    first, *others = (reports[0].accuracy.per_run for reports in found.reports.values())
    assert all(np.array_equal(first, other) for other in others)


def test_a_sweep_says_which_layers_have_other_chips():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = network()

        def forward(self, x):
            return self.body(x)

    models = {name: nft.convert(network(), NVM) for name in ("a", "b")}
    models |= {"named": nft.convert(Named(), NVM), "moved": nft.convert(network(), NVM)}
    nft.noisy_layers(models["moved"])["2"].stream = 5
    found = sweep(models)
    assert found.notes == [
        "named shares the chips of 0 of 2 layers with a, b; the other layers have chips of their own, so differences "
        "have more noise (only in a: 0, 2; only in named: body.0, body.2)",
        "moved shares the chips of 1 of 2 layers with a, b; the other layers have chips of their own, so differences "
        "have more noise (another stream: 2)",
    ]
    for table in (found.table(), found.differences_table()):
        assert "note: moved shares the chips of 1 of 2 layers" in table
    assert found.to_dict()["notes"] == found.notes


def test_a_journal_keeps_torchs_names(tmp_path):
    """Journals of version 0.2 have them, also of networks that were wrapped after the conversion."""
    noisy = nn.DataParallel(nft.convert(network(), NVM))
    nft.monte_carlo(noisy, DATA, runs=2, progress=False, resume=tmp_path / "j")
    streams = json.loads((tmp_path / "j").read_text().splitlines()[0])["fixed"]["streams"]
    layers = nft.noisy_layers(noisy)
    assert streams == {f"module.{name}": layer.stream for name, layer in layers.items()} and list(layers) == ["0", "2"]
