"""The first step of a training is observed: it names noisy layers that did not run."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional

import nft_ext as nft

generator = torch.Generator().manual_seed(4)
DATA = torch.randn(24, 6, generator=generator), torch.randint(3, (24,), generator=generator)


class Reads(nn.Module):
    def __init__(self, reads):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.head, self.reads = nn.Linear(6, 6), nn.Linear(6, 3), reads

    def forward(self, x):
        return self.head(functional.linear(x, self.first.weight) if self.reads else self.first(x))


def fit(model, **options):
    method = nft.methods.OVF(sigma=0.1, beta=1e-3)
    return nft.fit(model, method, DATA, DATA, epochs=1, batch_size=12, progress=False, **options)


@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_layer_that_did_not_run_is_named_once(compile):
    with pytest.warns(UserWarning, match="did not run") as caught:
        fit(Reads(True), compile=compile)
    texts = [str(w.message) for w in caught if str(w.message).startswith("fit: ")]
    assert texts == [
        "fit: these noisy layers did not run in the first step, so their noise had no effect (66.7 % of the noisy "
        "weights): first",
        "fit: the weights of these noisy layers are read without noise: first",
    ]
    assert {w.filename for w in caught if str(w.message).startswith("fit: ")} == {__file__}


def test_nothing_is_said_where_all_layers_ran():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        fit(Reads(False))


def test_observing_does_not_change_the_training(monkeypatch):
    found = fit(Reads(False)).model.state_dict()
    monkeypatch.setattr(nft.training.loop.Loop, "_gradient", lambda self, *step: self.gradient(*step))
    assert all(torch.equal(value, found[name]) for name, value in fit(Reads(False)).model.state_dict().items())
