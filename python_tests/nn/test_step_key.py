"""One key per training step: which chips its forwards see."""

import pytest
import torch
from torch import nn

import nft_ext as nft
from nft_ext.nn import step_key
from nft_ext.nn.step_key import StepKey

NVM = nft.NVMDevice(sigma=0.2)
X = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))


def net():
    torch.manual_seed(0)
    return nft.convert(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), NVM)


def keys_of(model):
    return [layer.noise_state()[1] for layer in nft.noisy_layers(model).values()]


def test_all_layers_share_the_key_and_each_forward_has_its_draw():
    model = net()
    torch.manual_seed(3)
    step = StepKey(model)
    with step.forward():
        first, second = keys_of(model)
        assert torch.equal(first, second) and first.shape == (1, 2)
    for n in (0, 1, 2):
        with step.forward(n):
            found = keys_of(model)[0]
            assert found.tolist() == [[int(first[0, 0]), int(first[0, 1]) + n]]
    assert keys_of(model) == [None, None]
    assert int(first[0, 1]) >> 32 == 1, "the training domain"


def test_steps_follow_torchs_generator():
    model = net()

    def step():
        with StepKey(model).forward(), torch.no_grad():
            return model(X)

    torch.manual_seed(3)
    first, second = step(), step()
    torch.manual_seed(3)
    assert torch.equal(step(), first) and torch.equal(step(), second) and not torch.equal(first, second)


def test_chips_around_the_step_decide(monkeypatch):
    model = net()
    monkeypatch.setattr(step_key, "fresh_key", lambda like: pytest.fail("nothing must be drawn"))
    with nft.chips(model, seed=5, draws=[7]), torch.no_grad():
        expected = model(X)
        with StepKey(model).forward(2):
            assert torch.equal(model(X), expected)


def test_a_model_without_noise_draws_nothing(monkeypatch):
    monkeypatch.setattr(step_key, "fresh_key", lambda like: pytest.fail("nothing must be drawn"))
    with StepKey(nn.Linear(3, 2)).forward():
        pass
