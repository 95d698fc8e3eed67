"""A trained model as the start of another training, by any method."""

import pytest
import torch
from torch import nn

import nft_ext as nft
from nft_ext import methods

IMAGES, LABELS = torch.randn(24, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(24) % 3
DATA = {"train": (IMAGES, LABELS), "validation": (IMAGES, LABELS), "batch_size": 8, "progress": False}


@pytest.fixture(scope="module")
def pretrained():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 3))
    return nft.fit(net, methods.Vanilla(), epochs=3, lr=1e-2, **DATA).model


@pytest.mark.parametrize(
    "method",
    [
        methods.NoiseInjection(0.1),
        methods.ScaledLogits(0.1),
        methods.OVF(0.1, 0.01),
        methods.IRS(0.1, 0.01, points=["2"], input_shape=(1, 8, 8)),
        methods.Censored(0.1),
        methods.CorrectNet("vanilla"),
    ],
    ids=lambda m: m.name,
)
def test_training_goes_on_from_the_weights_it_is_given(pretrained, method):
    before = {key: value.clone() for key, value in pretrained.state_dict().items()}
    history = nft.fit(pretrained, method, epochs=1, lr=1e-9, **DATA)
    for name, parameter in history.model.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name], rtol=0, atol=1e-6)
    assert all(torch.equal(value, before[key]) for key, value in pretrained.state_dict().items())


def test_a_checkpoint_is_a_pretrained_start(tmp_path):
    x, y = torch.randn(4, 1, 32, 32), torch.tensor([0, 1, 2, 0])
    options = {"epochs": 1, "batch_size": 4, "progress": False}
    path = tmp_path / "vanilla.safetensors"
    model = nft.models.vgg8(3, width=0.01)
    first = nft.fit(model, methods.Vanilla(), (x, y), (x, y), checkpoint=path, **options).model
    model, _ = nft.training.load_model(path)
    second = nft.fit(model, methods.IRS(0.1, 0.01), (x, y), (x, y), lr=1e-9, **options).model
    torch.testing.assert_close(second.fc2.weight, first.fc2.weight, rtol=0, atol=1e-6)
