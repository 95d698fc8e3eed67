"""The model given to chips is the entry of several chips: calls past it, wrappers, parts and copies."""

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn

import nft_ext as nft
from support.chips import DRAWS, NVM, Calling, apart, noisy, rand, together


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

    def encode(self, x):
        return self.body(x).relu()

    def forward(self, x):
        return self.head(self.encode(x))


@pytest.mark.parametrize(
    "call", [lambda m: m.encode(rand(4, 8)), lambda m: m.body(rand(4, 8)), lambda m: m.forward(rand(4, 8))]
)
def test_layers_reached_past_the_model_are_refused_on_several_chips(call):
    model = noisy(Encoder())
    with nft.chips(model, draws=range(2)):
        for _ in range(2):
            with pytest.raises(RuntimeError, match=r"^body: must be reached through a call of the model.*; got a call"):
                call(model)
            model(rand(4, 8))
    with nft.chips(model, seed=3, draws=1):
        one = call(model)
    with nft.chips(model.body, seed=3, draws=range(2)):
        torch.testing.assert_close(model.body(rand(4, 8)).chunk(2)[1].relu(), model.encode(rand(4, 8))[4:])
    assert len(one) == 4


def test_an_interrupted_forward_leaves_no_mark():
    model = noisy(Calling(lambda net, x: net(x)))

    def interrupt(*_):
        raise KeyboardInterrupt

    with nft.chips(model, seed=3, draws=DRAWS):
        expected = model(rand(4, 8))
        handle = model.net[1].register_forward_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            model(rand(4, 8))
        handle.remove()
        assert torch.equal(model(rand(4, 8)), expected)


def test_wrappers_of_the_model_and_around_it():
    model, x = noisy(Encoder()), rand(4, 8)
    expected = together(model, x)
    compiled = torch.compile(model, backend="eager")
    wrappers = (nn.DataParallel(model), nn.Sequential(model), compiled)
    for given in (model, *wrappers):
        for called in (*wrappers, model) if given is model else (given,):
            with torch.no_grad(), nft.chips(given, seed=3, draws=DRAWS):
                torch.testing.assert_close(called(x), expected)
    torch._dynamo.reset()


def test_a_model_that_calls_itself_repeats_its_inputs_once():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(8, 8)

        def forward(self, x, again=True):
            return self(self.fc(x), again=False) if again else self.fc(x)

    model = noisy(Twice())
    torch.testing.assert_close(together(model, rand(4, 8)), torch.cat(apart(model, rand(4, 8))))


def test_a_part_on_chips_of_its_own():
    model, x = noisy(Encoder()), rand(4, 8)
    with torch.no_grad():
        with nft.chips(model, seed=3, draws=DRAWS), nft.chips(model.body, seed=9):
            found = model(x)  # one body for all heads
        for chip, draw in enumerate(DRAWS):
            with nft.chips(model, seed=3, draws=draw), nft.chips(model.body, seed=9):
                torch.testing.assert_close(found.chunk(3)[chip], model(x))
        with nft.chips(model.body, seed=9, draws=range(2)), nft.chips(model, seed=3, draws=DRAWS):
            torch.testing.assert_close(model(x), together(model, x))  # the innermost context decides
        with nft.chips(model, seed=3, draws=DRAWS), nft.chips(model.body, seed=9, draws=range(2)):
            with pytest.raises(ValueError, match="^draws: must be one chip for a part of a model that runs on several"):
                model(x)


def test_a_fused_model_and_its_cascade():
    torch.manual_seed(0)
    net = noisy(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU()))
    fused, x = nft.fuse(net), rand(4, 3, 8, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(together(fused, x), torch.cat(apart(net, x)))
    with (
        torch.no_grad(),
        nft.chips(fused, draws=range(2)),
        pytest.raises(RuntimeError, match="must be reached through"),
    ):
        fused.get_submodule("cascade0")(tuple(fused.children())[:2], rand(4, 3, 8, 8))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_made_inside_keeps_the_chips_and_their_rules(copied):
    model, x = noisy(Encoder()), rand(4, 8)
    with nft.chips(model, seed=3, draws=DRAWS):
        twin = copied(model)
    with torch.no_grad():
        assert torch.equal(twin(x), together(model, x))
        with pytest.raises(RuntimeError, match="must be reached through"):
            twin.encode(x)
        with nft.chips(twin, seed=3, draws=[1, 2]):
            assert twin(x).shape == (8, 3)
        assert twin(x).shape == (12, 3)
        for plain in (nft.restore(twin), nft.program(twin), nft.convert(twin, NVM)):
            assert plain(x).shape == (4, 3)
