"""One observed forward: which noisy layers ran, and what was multiplied without noise."""

import random
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import nft_ext as nft
from nft_ext.nn.observed import observed

NVM = nft.NVMDevice(sigma=0.3)
X = torch.randn(8, 6, generator=torch.Generator().manual_seed(1))


class Reads(nn.Module):
    """Calls `called` and reads the weight of `read`, as Swin's attention does."""

    def __init__(self):
        super().__init__()
        self.read, self.called = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.called(functional.linear(x, self.read.weight, self.read.bias))


class Own(nn.Module):
    """A matrix of its own, as the Conv1D of transformers' GPT-2."""

    def __init__(self):
        super().__init__()
        self.weight, self.shift = nn.Parameter(torch.ones(6, 6)), nn.Parameter(torch.zeros(1, 6))

    def forward(self, x):
        return x @ self.weight + self.shift


def found(model, *inputs):
    with torch.no_grad(), observed(model) as observer:
        model(*inputs)
    return observer.found()


def test_a_layer_whose_weight_is_read_did_not_run():
    observation = found(nft.convert(Reads(), NVM), X)
    assert (observation.never_ran, observation.read, observation.matrices) == (["read"], ["read"], [])
    assert observation.share == 36 / (36 + 18)


def test_a_layer_that_is_called_and_read_is_named():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(6, 6)

        def forward(self, x):
            return self.fc(x) @ self.fc.weight

    observation = found(nft.convert(Both(), NVM), X)
    assert (observation.never_ran, observation.read) == ([], ["fc"])


def test_a_tied_embedding_is_a_finding_of_the_conversion_only():
    class Tied(nn.Module):
        def __init__(self, tied):
            super().__init__()
            self.out = nn.Linear(6, 5, bias=False)
            if tied:
                self.words = nn.Embedding(5, 6)
                self.words.weight = self.out.weight

        def forward(self, x):
            read = functional.embedding(x, self.out.weight) if not hasattr(self, "words") else self.words(x)
            return self.out(read)

    for tied, read in ((True, []), (False, ["out"])):
        assert found(nft.convert(Tied(tied), NVM), torch.arange(4)).read == read


def test_matrices_of_other_modules_are_named():
    observation = found(nft.convert(nn.Sequential(Own(), nn.Linear(6, 6)), NVM), X)
    assert (observation.never_ran, observation.read, observation.matrices) == ([], [], ["0.weight"])


@pytest.mark.parametrize("fuse", [False, True], ids=["plain", "fused"])
def test_a_network_whose_layers_all_run_gives_no_finding(fuse):
    noisy = nft.convert(nft.models.vgg8(width=0.0625), NVM).eval()
    noisy = nft.fuse(noisy) if fuse else noisy
    images = torch.randn(2, 1, 32, 32)
    with nft.chips(noisy, draws=[0]):
        expected = noisy(images)
        with torch.no_grad(), observed(noisy) as observer:
            assert torch.equal(noisy(images), expected)
    assert observer.found().texts("here") == []


def test_products_that_make_a_weight_are_no_finding():
    class Square(nn.Module):
        def forward(self, weight):
            return weight @ weight

    noisy = nft.convert(nn.Sequential(nn.Linear(6, 6)), NVM)
    nn.utils.parametrize.register_parametrization(noisy[0], "weight", Square())
    assert found(noisy, X).texts("here") == []


def test_layers_called_by_their_forward_have_run():
    class Direct(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(6, 6)

        def forward(self, x):
            return self.fc.forward(x)

    assert found(nft.convert(Direct(), NVM), X).never_ran == []


def test_compiled_networks_are_observed_too():
    assert found(torch.compile(nft.convert(Reads(), NVM), backend="eager"), X).never_ran == ["read"]


def test_nothing_stays_on_the_layers():
    noisy = nft.convert(Reads(), NVM)
    before = {name: set(vars(m)) for name, m in noisy.named_modules()}
    found(noisy, X)
    assert {name: set(vars(m)) for name, m in noisy.named_modules()} == before
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in noisy.modules())


# ---- convert(example=...)


@pytest.mark.parametrize("example", [X, (X,), {"x": X}], ids=["tensor", "tuple", "mapping"])
def test_convert_runs_an_example_and_names_what_is_exact(example):
    with pytest.warns(UserWarning, match="these noisy layers did not run") as caught:
        nft.convert(Reads(), NVM, example=example)
    assert [str(w.message) for w in caught] == [
        "convert: these noisy layers did not run in a forward of the example, so their noise had no effect (66.7 % of "
        "the noisy weights): read",
        "convert: the weights of these noisy layers are read without noise: read",
    ]
    assert {w.filename for w in caught} == {__file__}


def test_no_warning_where_every_layer_ran():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nft.convert(nn.Sequential(nn.Linear(6, 6)), NVM, example=X)


def test_an_example_leaves_everything_as_it_was():
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.norm = nn.Linear(6, 6), nn.BatchNorm1d(6)
            self.register_buffer("calls", torch.zeros(1))
            self.register_buffer("last", None)

        def forward(self, x):
            self.calls += 1
            self.last = x
            random.random(), np.random.rand()  # noqa: NPY002
            return functional.dropout(self.norm(self.fc(x)))

    def states():
        return random.getstate(), np.random.get_state()[2], torch.get_rng_state().tolist()  # noqa: NPY002

    model = Counts()
    before = states()
    noisy = nft.convert(model, NVM, example=X)
    assert states() == before
    assert noisy.calls == 0 and noisy.last is None and noisy.training and noisy.norm.training
    assert torch.equal(noisy.norm.running_mean, torch.zeros(6)) and noisy.norm.num_batches_tracked == 0


@pytest.mark.parametrize(
    "example, kind, text",
    [
        (3, TypeError, "must be a tensor, a tuple of arguments or a mapping"),
        (torch.ones(2, 5), ValueError, "must be an input that the model accepts; got "),
        ({"y": X}, ValueError, "must be an input that the model accepts; got TypeError"),
    ],
)
def test_an_example_that_is_none_is_an_error(example, kind, text):
    with pytest.raises(kind, match=f"example: {text}"):
        nft.convert(Reads(), NVM, example=example)
