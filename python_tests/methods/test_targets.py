"""Every method refuses targets that its cross-entropy would misread, and names outputs that are probabilities."""

import pytest
import torch
from torch import nn

import nft_ext as nft

OPTIONS = {
    "vanilla": {},
    "noise": {"sigma": 0.1},
    "control": {"sigma": 0.1},
    "ovf": {"sigma": 0.1, "beta": 1e-2},
    "irs": {"sigma": 0.1, "beta": 1e-2, "points": ["0"], "input_shape": (1, 4, 4)},
    "censored": {"sigma": 0.1},
    "correctnet": {},
}
METHODS = [nft.methods.build(name, **OPTIONS[name]) for name in nft.methods.NAMES]


def network(outputs, *end):
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, outputs), *end)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_a_regression_target_is_refused(method):
    x = torch.randn(6, 1, 4, 4)
    for outputs in (1, 3):
        with pytest.raises(ValueError, match="give criterion= for a regression|of at least two classes for irs"):
            method.loss(method.prepare(network(outputs)), x, torch.randn(6, outputs))


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_a_softmax_at_the_end_is_named(method):
    x, target = torch.randn(6, 1, 4, 4), torch.arange(6) % 3
    with pytest.warns(UserWarning, match="are probabilities .* not logits. The cross-entropy"):
        method.loss(method.prepare(network(3, nn.Softmax(dim=1))), x, target)


@pytest.mark.parametrize("method", [m for m in METHODS if m.name != "irs"], ids=lambda method: method.name)
def test_tags_need_the_classes_in_dim_1(method):
    tokens, tags = torch.randint(0, 50, (3, 4)), torch.randint(0, 4, (3, 4))
    tagger = nn.Sequential(nn.Embedding(50, 16), nn.Linear(16, 4))
    with pytest.raises(ValueError, match="no doubt where the classes are"):
        method.loss(method.prepare(tagger), tokens, tags)
    flat = nn.Sequential(tagger, nn.Flatten(0, 1))
    assert torch.isfinite(method.loss(method.prepare(flat), tokens, tags.flatten()))


def test_class_probabilities_train_as_torch_trains_them():
    method, model = nft.methods.Vanilla(), network(3)
    x, shares = torch.randn(6, 1, 4, 4), torch.rand(6, 3).softmax(dim=1)
    assert torch.equal(method.loss(model, x, shares), nn.functional.cross_entropy(model(x), shares))
