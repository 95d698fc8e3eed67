"""Several chips in one pass: chip s of the result is what one pass with chip s gives, for every kind of model."""

import collections
import dataclasses
import typing
import warnings

import pytest
import torch
from torch import nn

import nft_ext as nft
from support.chips import DRAWS, Calling, Recurrent, apart, noisy, rand, together

# ---- inputs in containers


@dataclasses.dataclass(frozen=True)
class Fields:
    x: torch.Tensor
    scale: float


class Named(typing.NamedTuple):
    x: torch.Tensor
    scale: float


class Encoding(collections.UserDict):
    """As the tokenizers of transformers return it: no dict, and items are attributes too."""

    def __getattr__(self, name):
        return self.data[name]


class Items(collections.OrderedDict):
    """As the results of transformers: a subclass of OrderedDict."""


CONTAINERS = {
    "dict": (lambda net, b: net(b["x"]), lambda x: {"x": x, "scale": 2.0}),
    "keyword": (lambda net, *, b: net(b["x"]), lambda x: {"x": x}),
    "list": (lambda net, b: net(b[0]), lambda x: [x, None]),
    "tuple in list": (lambda net, b: net(b[0][1]), lambda x: [("a", x)]),
    "named tuple": (lambda net, b: net(b.x) * b.scale, lambda x: Named(x, 2.0)),
    "dataclass": (lambda net, b: net(b.x) * b.scale, lambda x: Fields(x, 2.0)),
    "mapping": (lambda net, b: net(b.x), lambda x: Encoding(x=x, n=1)),
    "subclass of a dict": (lambda net, b: net(b["x"]), lambda x: Items(x=x)),
}


@pytest.mark.parametrize("name", CONTAINERS)
@pytest.mark.filterwarnings("error")
def test_every_chip_sees_the_whole_batch_in_a_container(name):
    function, pack = CONTAINERS[name]
    model, given = noisy(Calling(function)), pack(rand(4, 8))
    call = {"b": given} if name == "keyword" else {}
    args = () if call else (given,)
    expected = apart(model, *args, **call)
    torch.testing.assert_close(together(model, *args, **call), torch.cat(expected))
    own = pack(torch.cat([rand(4, 8, seed=s) for s in range(3)]))  # each chip's own input
    with torch.no_grad(), nft.chips(model, seed=3, draws=DRAWS, repeat=False):
        found = model(b=own) if call else model(own)
    with torch.no_grad(), nft.chips(model, seed=3, draws=DRAWS[1]):
        mine = pack(rand(4, 8, seed=1))
        torch.testing.assert_close(found[4:8], model(b=mine) if call else model(mine))


def test_the_given_container_and_what_is_no_batch_stay_as_they_are():
    seen = []
    model = noisy(Calling(lambda net, b: seen.append(b) or net(b["x"])))
    given = {"x": rand(4, 8), "factor": torch.tensor(2.0), "flag": True, "size": torch.Size([4, 8])}
    kept = dict(given)
    together(model, given)
    assert given == kept and all(given[name] is kept[name] for name in kept)
    assert seen[-1]["x"].shape == (12, 8)
    assert all(seen[-1][name] is kept[name] for name in ("factor", "flag", "size"))


@pytest.mark.parametrize("pack", [lambda x: x, lambda x: {"x": x}, lambda x: [("a", x)]])
def test_inputs_that_are_not_chip_major_are_refused_in_containers_too(pack):
    model = noisy(Calling(lambda net, b: net(b)))
    with nft.chips(model, draws=DRAWS, repeat=False):
        with pytest.raises(ValueError, match=r"^inputs: must be chip-major \[3 \* B, ...\].*; got \[4, 8\]"):
            model(pack(rand(4, 8)))


def test_results_in_containers():
    model = noisy(Calling(lambda net, x: {"logits": net(x), "loss": net(x).square().mean(), "n": 3}))
    expected, found = apart(model, rand(4, 8)), together(model, rand(4, 8))
    torch.testing.assert_close(found["logits"], torch.cat([one["logits"] for one in expected]))
    torch.testing.assert_close(found["loss"], torch.stack([one["loss"] for one in expected]).mean())
    assert found["n"] == 3


# ---- models whose dim 0 is not the batch, or that join and split it


class Queries(nn.Module):
    """Attention of learned queries to the batch, as in a detection transformer."""

    def __init__(self, count):
        super().__init__()
        self.queries, self.q, self.k = nn.Parameter(rand(count, 8)), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):  # [B, T, 8]
        return self.k(x) @ self.q(self.queries).mT


class Positions(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.first, self.last = nn.Parameter(rand(64, 1, 8)), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):  # [T, B, 8]
        return self.last(self.first(x) + self.table[: len(x)])


class Silent(nn.Module):
    """Mixes the batch in a branch that does not count yet."""

    def __init__(self):
        super().__init__()
        self.gate, self.a, self.b = nn.Parameter(torch.zeros(())), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        h = self.a(x)
        return h + self.gate * self.b(h.mean(0, keepdim=True).expand_as(h))


MIXING = {
    "sequence-first LSTM": (Recurrent, lambda: [rand(6, 4, 8)]),
    "siamese, joined along dim 0": (
        lambda: Calling(lambda net, a, b: net(torch.cat([a, b]))[: len(a)] - net(b)),
        lambda: [rand(4, 8), rand(4, 8, seed=2)],
    ),
    "video, frames first": (
        lambda: Calling(lambda net, x: net(x.flatten(0, 1)).unflatten(0, x.shape[:2]).mean(0)),
        lambda: [rand(5, 4, 8)],
    ),
    "odd number of learned queries": (lambda: Queries(3), lambda: [rand(4, 5, 8)]),
    "even number of learned queries": (lambda: Queries(4), lambda: [rand(4, 5, 8)]),
    "table of positions": (Positions, lambda: [rand(5, 4, 8)]),
    "a branch that does not count yet": (Silent, lambda: [rand(4, 8)]),
    "an input that cannot be repeated": (
        lambda: Calling(lambda net, source: net(source())),
        lambda: [lambda: rand(4, 8)],
    ),
}


@pytest.mark.parametrize("name", MIXING)
def test_a_model_that_mixes_chips_runs_them_one_by_one_and_says_so_once(name):
    make, inputs = MIXING[name]
    torch.manual_seed(0)
    model, x = noisy(make()), inputs()
    expected = torch.cat(apart(model, *x))
    with pytest.warns(UserWarning, match=rf"^chips: {type(model).__name__} runs one chip per pass.*two chips in one"):
        assert torch.equal(together(model, *x), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(together(model, *x), expected)


@pytest.mark.parametrize("context", [dict(sigma=0.0), dict(enabled=False)])
def test_the_outcome_of_the_check_does_not_depend_on_the_noise(context):
    """Without noise all chips are the same, and a mixture would not show."""
    model, x = noisy(Recurrent()), rand(6, 4, 8)
    with nft.noise(model, **context), pytest.warns(UserWarning, match="one chip per pass"):
        together(model, x)
    assert torch.equal(together(model, x), torch.cat(apart(model, x)))


def test_gradients_of_chips_one_by_one_are_those_of_passes_per_chip():
    model, x = noisy(Recurrent()), rand(6, 4, 8)
    gradients = []
    for several in (True, False):
        model.zero_grad()
        for draws in [DRAWS] if several else [[draw] for draw in DRAWS]:
            with nft.chips(model, seed=3, draws=draws), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model(x).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for found, expected in zip(*gradients):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("repeat", [True, False])
def test_held_weights_and_inputs_of_their_own_work_one_by_one(repeat):
    model = noisy(Recurrent())
    parts = [rand(6, 4, 8, seed=1 if repeat else s) for s in range(3)]
    with torch.no_grad(), pytest.warns(UserWarning, match="one chip per pass"):
        with nft.chips(model, seed=3, draws=DRAWS, repeat=repeat, programmed=True):
            found = model(parts[0] if repeat else torch.cat(parts))
    for chip, draw in enumerate(DRAWS):
        with torch.no_grad(), nft.chips(model, seed=3, draws=draw, programmed=True):
            assert torch.equal(found.chunk(3)[chip], model(parts[chip]))


def test_results_that_cannot_be_joined_are_refused():
    model = noisy(Calling(lambda net, x: iter(net(x.mean(0, keepdim=True)))))
    with nft.chips(model, draws=DRAWS), pytest.raises(ValueError, match="^model: must return tensors, or containers"):
        model(rand(4, 8))
    with nft.chips(model, draws=1):
        assert len(list(model(rand(4, 8)))) == 1


def test_hooks_see_their_calls_once_per_chip():
    model, x, seen = noisy(Recurrent()), rand(6, 4, 8), []
    with torch.no_grad(), nft.chips(model, seed=3, draws=DRAWS), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model(x)
        model.register_forward_pre_hook(lambda m, args: (2 * args[0],))
        model.register_forward_hook(lambda m, args, y: seen.append(len(y)) or y + 1)
        found = model(x)
    assert seen == [6] * 3
    assert torch.equal(found, torch.cat(apart(model, x)))
