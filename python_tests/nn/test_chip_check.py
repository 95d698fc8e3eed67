"""The check of several chips in one pass: what it depends on, what it costs, and that it leaves no trace."""

import copy
import random
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import nft_ext as nft
from nft_ext.nn.contexts import why_apart
from support.chips import DRAWS, Calling, Recurrent, apart, noisy, rand, together


class Counting(nn.Module):
    """Draws random numbers, and changes attributes, lists and buffers."""

    def __init__(self):
        super().__init__()
        self.fc, self.drop = nn.Linear(8, 8), nn.Dropout(0.5)
        self.register_buffer("calls", torch.zeros(()))
        self.times, self.log = 0, []

    def forward(self, x):
        self.times += 1
        self.log.append(len(x))
        self.calls += 1
        self.latest = x
        self.random = random.random(), np.random.rand(), torch.rand(())  # noqa: NPY002
        return self.fc(self.drop(x))


@pytest.mark.parametrize("training", [True, False])
def test_the_check_leaves_no_trace(training):
    model = noisy(Counting()).train(training)
    torch.manual_seed(0), random.seed(0), np.random.seed(0)  # noqa: NPY002
    twin = copy.deepcopy(model)
    expected = random.random(), np.random.rand(), torch.rand(())  # noqa: NPY002
    torch.manual_seed(0), random.seed(0), np.random.seed(0)  # noqa: NPY002
    with nft.chips(model, draws=DRAWS):
        model(rand(4, 8))
    assert (model.times, model.log, float(model.calls), len(model.latest)) == (1, [12], 1.0, 12)
    assert model.random == expected
    assert model.training == model.drop.training == training
    assert vars(model).keys() - vars(twin).keys() == {"latest", "random"}


class Centred(nn.Module):
    """Batch statistics of its own, in training mode only, and all kinds of dropout."""

    def __init__(self, centred):
        super().__init__()
        self.centred, self.fc, self.last = centred, nn.Linear(8, 8), nn.Linear(8, 3)
        self.drop, self.attention = nn.Dropout(0.5), nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True)

    def forward(self, x):  # [B, T, 8]
        x = nn.functional.dropout(self.fc(x), 0.5, self.training)
        x = self.drop(self.attention(x, x, x)[0])
        x = nn.functional.scaled_dot_product_attention(x, x, x, dropout_p=0.5 if self.training else 0.0)
        return self.last(x - x.mean(0) if self.training and self.centred else x)


def test_the_check_is_made_in_training_mode_too_but_without_dropout():
    sound, mixing = (noisy(Centred(centred)) for centred in (False, True))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for training in (False, True):
            together(sound.train(training), rand(4, 5, 8))
        together(mixing, rand(4, 5, 8))
    with pytest.warns(UserWarning, match="one chip per pass.* of the largest result|at the input of layer 'last'"):
        together(mixing.train(), rand(4, 5, 8))


def test_the_check_runs_once_per_structure_and_kind_of_input():
    passes = []
    model = noisy(Calling(lambda net, x: net(x)))
    handle = model.register_forward_hook(lambda *_: passes.append(0))

    def checked(x):
        passes.clear()
        together(model, x)
        return len(passes) == 4

    assert checked(rand(4, 8)) and not checked(rand(4, 8)) and not checked(rand(7, 8))
    assert checked(rand(4, 2, 8)) and checked({"x": rand(4, 8)}["x"].double().float().requires_grad_()) is False
    model.net[1] = nn.Sigmoid()
    assert checked(rand(4, 8)) and not checked(rand(4, 8))
    handle.remove()


def test_no_check_and_no_hook_with_one_chip():
    passes = []
    model = noisy(Calling(lambda net, x: passes.append(0) or net(x)))
    with nft.chips(model, draws=3):
        assert not model._forward_pre_hooks and not model._forward_hooks
        model(rand(4, 8))
    assert len(passes) == 1


class Recording(TorchDispatchMode):
    """Counts the operations, as a profiler does."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


def test_where_no_check_can_run_every_chip_has_its_pass():
    x = rand(4, 8)
    for model in (noisy(Calling(lambda net, x: net(x))), noisy(Recurrent())):
        given = x if isinstance(model, Calling) else rand(6, 4, 8)
        with Recording():
            found = together(model, given)
        assert torch.equal(found, torch.cat(apart(model, given)))
    model = noisy(Calling(lambda net, x: net(x)))
    parameters = dict(model.named_parameters())
    with nft.chips(model, seed=3, draws=DRAWS):
        gradient = torch.func.grad(lambda p: torch.func.functional_call(model, p, (x,)).sum())(parameters)
        model(x).sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradient[name], parameter.grad)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("cast", [lambda x: x, lambda x: x.bfloat16()])
def test_rounding_in_16_bits_is_no_mixture(cast):
    """Also where the model takes its inputs under autocast only."""
    deep = nn.Sequential(*[layer for _ in range(30) for layer in (nn.Linear(8, 8), nn.LayerNorm(8), nn.GELU())])
    model = noisy(Calling(lambda net, x: net(x), deep))
    with torch.autocast("cpu", torch.bfloat16):
        x = cast(rand(16, 8))
        assert together(model, x).shape == (48, 8)


def test_the_reason_is_known_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert why_apart(noisy(Calling(lambda net, x: net(x))), rand(4, 8)) is None
        assert why_apart(noisy(Recurrent()), rand(6, 4, 8)).startswith("two chips in one pass differ from two passes")


def test_an_error_of_the_forward_itself_comes_through():
    model = noisy(Calling(lambda net, x: net(x)))
    with nft.chips(model, draws=DRAWS), warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match=r"x: must have the shape \[..., in\] with in = 8"):
            model(rand(4, 9))
        assert model(rand(4, 8)).shape == (12, 8)
