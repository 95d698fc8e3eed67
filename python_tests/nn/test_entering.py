"""What entering `chips` costs on an unchanged model: a fixed number of calls per layer."""

import sys
from collections import Counter

import pytest
import torch
from torch import nn

import nft_ext as nft
from nft_ext.nn.structure import modules_of

NVM = nft.NVMDevice(sigma=0.1)


def blocks(count):
    return nft.convert(nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(count))), NVM)


def calls(work):
    """Calls of Python functions that `work` makes, by name."""
    found = Counter()

    def count(frame, event, argument):
        if event == "call":
            found[frame.f_code.co_name] += 1

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(before)
    return found


@pytest.mark.parametrize("chips", [1, 4])
def test_a_layer_costs_few_calls(chips):
    """Among them no nn.Module.__getattr__, which is slow. bench/studies/entering.py compares CPU times."""
    few, many = blocks(10), blocks(50)

    def enter(model):
        with nft.chips(model, seed=1, draws=range(chips)):
            pass

    for model in (few, many):
        enter(model)  # what the first time imports and caches does not count
    found = calls(lambda: enter(many))
    found.subtract(calls(lambda: enter(few)))
    per_layer = {name: count / 40 for name, count in found.items() if count}
    assert "__getattr__" not in per_layer
    assert sum(per_layer.values()) <= 14, per_layer


def _replace(model):
    model[1] = nft.NoisyLinear(4, 4, nvm=NVM)


def _directly(model):
    model._modules["1"] = nft.NoisyLinear(4, 4, nvm=NVM)


def _new_dict(model):
    model._modules = {**model._modules, "1": nft.NoisyLinear(4, 4, nvm=NVM)}


@pytest.mark.parametrize("change", [_replace, _directly, _new_dict])
def test_every_change_of_the_structure_counts(change):
    model, x = blocks(3), torch.randn(2, 4)
    for _ in range(2):
        with nft.chips(model):
            model(x)
    change(model)
    with torch.no_grad(), nft.chips(model, seed=3):
        found = model(x)
    new = model[1]
    assert isinstance(new, nft.NoisyLinear) and new.name == "1" and new in modules_of(model)
    with torch.no_grad(), nft.chips(model, seed=3):
        assert torch.equal(model(x), found)
        with nft.noise(model, enabled=False):
            assert not torch.equal(model(x), found)
