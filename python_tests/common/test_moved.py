"""Old module names of 0.2 still lead to the modules at their new places, and say so."""

import importlib
import sys

import pytest
import torch

import nft_ext as nft
from nft_ext._common.moved import MOVED
from support.paths import FILES


@pytest.mark.parametrize("old", sorted(MOVED))
def test_an_old_name_gives_the_very_module_at_its_new_place(old):
    sys.modules.pop(old, None)
    new = importlib.import_module(MOVED[old])
    with pytest.warns(DeprecationWarning, match=f"{old} is now {MOVED[old]}"):
        assert importlib.import_module(old) is new
    assert new.__name__ == MOVED[old] == new.__spec__.name


@pytest.mark.filterwarnings("ignore:nft_ext:DeprecationWarning")
def test_a_whole_model_that_0_2_pickled_is_read_and_runs_on_the_same_chip():
    """The file: nft_ext 0.2, `convert` of Conv2d(1, 2, 3), Flatten, Linear(8, 3) after torch.manual_seed(0),
    torch.save.
    """
    model = torch.load(FILES / "0.2" / "whole_model.pt", weights_only=False)
    assert isinstance(model[0], nft.NoisyConv2d) and isinstance(model[2], nft.NoisyLinear)
    x = torch.arange(16.0).reshape(1, 1, 4, 4) / 16
    with torch.no_grad(), nft.chips(model, seed=0, draws=[3]):
        y = model(x)
    assert torch.allclose(y, torch.tensor([[-0.3456264, -0.045549, 0.2033767]]), rtol=0, atol=1e-6)


def test_an_unknown_name_is_still_unknown():
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("nft_ext.no_such_module")
