"""Streams follow from names alone: not from the order of calls, of layers or of models."""

import copy
import itertools

import pytest
import torch
from torch import nn

import nft_ext as nft
from nft_ext.ops import keys

NVM = nft.NVMDevice(sigma=0.2)
NAMES = ["a", "b", "c"]


@pytest.fixture
def one_hash(monkeypatch):
    """Every name of NAMES has the same hash."""
    monkeypatch.setattr(keys, "_hash", lambda text: 7 + text.count("'") if text[0] in "abc" else 99)


def model(names=NAMES, make=lambda: nn.Linear(4, 4)):
    return nn.ModuleDict({name: make() for name in names})


def streams(noisy):
    return {name: layer.stream for name, layer in nft.noisy_layers(noisy).items()}


# ---- names with one hash


def test_collisions_are_settled_in_the_order_of_the_names(one_hash):
    for order in itertools.permutations(NAMES):
        assert streams(nft.convert(model(order), NVM)) == {"a": 7, "b": 8, "c": 9}


def test_the_order_of_conversions_does_not_matter(one_hash):
    for order in itertools.permutations(NAMES):
        noisy = model()
        for name in order:
            noisy = nft.convert(noisy, NVM, include=name)
        assert streams(noisy) == {"a": 7, "b": 8, "c": 9}
        assert streams(nft.convert(noisy, NVM)) == {"a": 7, "b": 8, "c": 9}


def test_layers_built_by_hand_follow_the_same_rule(one_hash):
    for order in itertools.permutations(NAMES):
        assert streams(model(order, lambda: nft.NoisyLinear(4, 4, nvm=NVM))) == {"a": 7, "b": 8, "c": 9}


def test_a_joined_model_settles_by_name_too(one_hash):
    for first, second in (("a", "b"), ("b", "a")):
        parts = {name: nft.convert(model([name]), NVM) for name in (first, second)}
        joined = nn.ModuleDict({f"part {name}": parts[name] for name in (first, second)})
        assert streams(joined) == {"part a.a": 7, "part b.b": 99}


# ---- more than one model around a layer


def hand_built():
    return nn.Sequential(nft.NoisyLinear(4, 4, nvm=NVM), nft.NoisyLinear(4, 4, nvm=NVM))


def test_a_layer_built_by_hand_has_one_name():
    """Its chips follow from the name, so they would depend on which model came first."""
    model = hand_built()
    x = torch.randn(2, 4)
    with nft.chips(model[1], draws=[1]):
        model[1](x)
    with (
        pytest.raises(ValueError, match=r"model: must give its layers .* '1' was used before as '' .*nft_ext\.convert"),
        nft.chips(model),
    ):
        pass
    with pytest.raises(ValueError, match="used before as ''"):
        nft.program(model)


def test_restoring_a_part_names_nothing():
    model = hand_built()
    nft.restore(model[1])
    assert streams(model) == streams(hand_built())


def test_convert_names_layers_for_good():
    model = hand_built()
    with nft.chips(model[1]):
        pass
    noisy = nft.convert(model, NVM)
    assert streams(noisy) == streams(hand_built())
    assert streams(noisy[1]) == {"": keys.stream_of("1")}
    assert streams(nn.Sequential(noisy)) == {f"0.{name}": keys.stream_of(name) for name in "01"}


def test_the_same_name_in_two_models_is_no_conflict():
    model = hand_built()
    assert streams(model) == streams(copy.deepcopy(model)) == streams(nn.Sequential(*model))


def test_parts_of_a_joined_model_that_changed_their_chips_are_refused_alone():
    parts = [nft.convert(nn.Sequential(nn.Linear(4, 4)), NVM) for _ in range(2)]
    before = streams(parts[1])
    joined = nn.Sequential(*parts)
    assert streams(joined) == {"0.0": before["0"], "1.0": keys.stream_of("1.0")}
    assert streams(parts[0]) == before
    with pytest.raises(ValueError, match=r"'0' was used before as '1\.0'"):
        nft.noisy_layers(parts[1])


def test_a_fused_copy_of_a_layer_built_by_hand_keeps_its_name():
    layer = nft.NoisyLinear(4, 4, nvm=NVM)
    fused = nft.fuse(layer)
    assert list(streams(fused).values()) == list(streams(layer).values())
