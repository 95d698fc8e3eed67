"""Two networks have the same identity if they compute the same from the same weights, as far as anyone can read it."""

import enum
import json
import re
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nft_ext as nft
from nft_ext._common.network_identity import network_differences, network_identity, tied
from support.paths import importing
from support.unordered import Unordered

GAIN = 1.0


class Mode(enum.Enum):
    SOFT = 1
    HARD = 2


class Net(nn.Module):
    """A layer, then whatever `then` does to its output."""

    def __init__(self, then=None, **attributes):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        for name, value in attributes.items():
            setattr(self, name, value)
        if isinstance(then, nn.Module):
            self.then = then

    def forward(self, x):
        return GAIN * self.layer(x)


class Clipped(Net):
    def forward(self, x):
        return super().forward(x).clamp(-1, 1)


class Leaky(nn.ReLU):
    """A class of other people with a base of torch and a private attribute."""

    def __init__(self, slope):
        super().__init__()
        self._slope = slope

    def forward(self, x):
        return torch.where(x > 0, x, self._slope * x)


class Table:
    """An object that is no module."""

    def __init__(self, value):
        self._values = [value]


def with_buffer(value):
    net = Net()
    net.register_buffer("mask", torch.full((4,), value), persistent=False)
    return net


def with_hook(factor):
    net = Net()
    net.layer.register_forward_hook(lambda module, x, y: factor * y)
    return net


def with_method(forward):
    net = Net()
    net.forward = forward.__get__(net)
    return net


def scaled_by(factor):
    return lambda x: factor * x


def halved(x, by=2):
    return x / by


def halved_again(x, by=4):
    return x / by


OTHERS = {
    "another layer": (lambda: Net(nn.ReLU()), lambda: Net(nn.GELU()), "layer then: ReLU, GELU"),
    "another number": (lambda: Net(nn.Dropout(0.1)), lambda: Net(nn.Dropout(0.2)), "layer then: p: 0.1, 0.2"),
    "a layer more": (lambda: Net(), lambda: Net(nn.ReLU()), "layer then: nothing, ReLU"),
    "another class": (lambda: Net(), lambda: Clipped(), "the network: class Net .*, class Clipped .*"),
    "a buffer": (lambda: with_buffer(1.0), lambda: with_buffer(2.0), "the network: mask: tensor float32"),
    "a tensor": (lambda: Net(t=torch.ones(2)), lambda: Net(t=torch.zeros(2)), "the network: t: tensor"),
    "a list": (lambda: Net(a=[1, 2]), lambda: Net(a=[2, 1]), r"the network: a: \[1, 2\], \[2, 1\]"),
    "a dict": (lambda: Net(a={"b": 1.0}), lambda: Net(a={"b": 2.0}), "the network: a.b: 1.0, 2.0"),
    "an array": (lambda: Net(a=np.float32(1)), lambda: Net(a=np.float32(2)), "the network: a: numpy float32"),
    "a private number": (lambda: Net(_a=1.0), lambda: Net(_a=2.0), "the network: _a: 1.0, 2.0"),
    "a private number below torch": (lambda: Net(Leaky(0.1)), lambda: Net(Leaky(0.2)), "layer then: _slope: 0.1, 0.2"),
    "an enum": (lambda: Net(m=Mode.SOFT), lambda: Net(m=Mode.HARD), "the network: m: Mode.SOFT, Mode.HARD"),
    "a dtype": (lambda: Net(d=torch.half), lambda: Net(d=torch.float), "the network: d: torch.float16, torch.float32"),
    "an object": (lambda: Net(t=Table(1)), lambda: Net(t=Table(2)), "the network: t._values"),
    "a function of torch": (lambda: Net(f=F.relu), lambda: Net(f=F.elu), "torch.nn.functional.relu, .*elu"),
    "a closure": (lambda: Net(f=scaled_by(1)), lambda: Net(f=scaled_by(2)), "function scaled_by"),
    "code": (lambda: Net(f=halved), lambda: Net(f=halved_again), "function halved .*, function halved_again"),
    "a default": (lambda: Net(f=halved), lambda: Net(f=lambda x, by=2: x / by), "the network: f: function halved"),
    "a hook": (lambda: with_hook(1), lambda: with_hook(2), "layer layer: hooks"),
    "a method": (lambda: Net(), lambda: with_method(Clipped.forward), "the network: forward: nothing"),
    "a layer used twice": (lambda: Net(nn.Linear(4, 4)), lambda: shared(), "layer then: Linear, the layer 'layer'"),
}


def shared():
    net = Net()
    net.then = net.layer
    return net


def found(one, other):
    """The differences as text, after both have been through JSON."""
    a, b = (json.loads(json.dumps(network_identity(model)[0])) for model in (one, other))
    return [f"{name}: {left}, {right}" for name, left, right in network_differences(a, b)]


@pytest.mark.parametrize("case", OTHERS)
def test_another_network_is_another_one_and_the_layer_is_named(case):
    one, other, words = OTHERS[case]
    assert found(one(), one()) == []
    assert re.search(words, "; ".join(found(one(), other())))


def test_a_global_that_the_code_names_counts(monkeypatch):
    before = json.loads(json.dumps(network_identity(Net())[0]))
    monkeypatch.setattr(sys.modules[__name__], "GAIN", 2.0)
    assert network_differences(before, network_identity(Net())[0])


def through_another_network(x):
    return OTHER(x)


OTHER = nn.Linear(2, 2)


def test_a_network_that_a_function_names_counts_with_its_weights():
    before = json.loads(json.dumps(network_identity(Net(f=through_another_network))[0]))
    assert network_differences(before, network_identity(Net(f=through_another_network))[0]) == []
    with torch.no_grad():
        OTHER.weight.add_(1)
    assert network_differences(before, network_identity(Net(f=through_another_network))[0])


def test_weights_gradients_and_the_mode_do_not_count():
    net = Net(nn.BatchNorm1d(4)).eval()
    net.layer.weight.requires_grad_(False)
    net.then.running_mean.fill_(3)
    net(torch.ones(1, 4))
    assert found(Net(nn.BatchNorm1d(4)), net) == []


def test_an_evaluation_changes_no_identity_and_private_attributes_of_our_layers_do_not_count():
    noisy = nft.convert(Net(nn.ReLU()), nft.NVMDevice(sigma=0.1))
    fresh = network_identity(noisy)[0]
    assert fresh["layer"]["stream"] == noisy.layer.stream and fresh["layer"]["name"] == "layer"
    with nft.chips(noisy, seed=1, draws=[0]), nft.noise(noisy, sigma=0.3), torch.no_grad():
        noisy(torch.ones(1, 4))
        noisy.layer._codes_of_tomorrow = torch.ones(3)
        noisy.layer.register_buffer("_buffer_of_tomorrow", torch.ones(3), persistent=False)
    nft.monte_carlo(noisy, (torch.ones(4, 4), torch.zeros(4).long()), runs=2, progress=False)
    assert network_identity(noisy)[0] == fresh


def test_our_classes_count_by_name_wherever_they_have_moved():
    now = network_identity(nft.convert(nn.Sequential(nn.Linear(4, 4)), nft.NVMDevice()))[0]
    assert now["0"]["class"] == "nft_ext.nn.linear.NoisyLinear"
    before = {**now, "0": {**now["0"], "class": "nft_ext.layers.linear.NoisyLinear"}}
    assert network_differences(before, now) == []


def test_an_option_that_is_off_equals_one_that_the_file_does_not_know():
    now = network_identity(nn.Sequential(nn.ReLU()))[0]
    later = {**now, "0": {**now["0"], "option of tomorrow": None, "another": False}}
    assert network_differences(now, later) == []
    assert network_differences(now, {**now, "0": {**now["0"], "option of tomorrow": 0.0}})


def test_what_cannot_be_read_is_named():
    identity, unread = network_identity(Net(lock=threading.Lock()))
    assert unread == {"_thread.lock"} and identity[""]["lock"] == "an unreadable _thread.lock"


def test_a_cycle_ends():
    loop = Table(1)
    loop._values.append(loop)
    net = Net(loop=loop)
    net.itself = [net]
    assert found(net, net) == []


def test_tied_parameters_are_grouped():
    net = Net(nn.Linear(4, 4))
    assert tied(net) == []
    net.then.weight = net.layer.weight
    assert tied(net) == [["layer.weight", "then.weight"]]


@pytest.mark.slow  # one more import of torch
def test_another_process_finds_the_same_identity():
    code = (
        "import json; from nft_ext._common.network_identity import network_identity; "
        "from support.unordered import Unordered; print(json.dumps(network_identity(Unordered())[0]))"
    )
    seeded = importing(PYTHONHASHSEED="1")
    run = subprocess.run([sys.executable, "-c", code], env=seeded, capture_output=True, text=True, check=True)
    assert json.loads(run.stdout) == network_identity(Unordered())[0]
