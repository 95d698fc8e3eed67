"""The convolution gradients that the CUDA operators ask of cuDNN are told to be deterministic, and nobody else's are.
cuDNN itself: cuda/test_products.py."""

import threading

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from nft_ext.ops import deterministic

operator, aten = torch.ops.nft_ext.convolution_backward.default, torch.ops.aten.convolution_backward.default
FLAGS = ("deterministic", "benchmark")


def flags():
    return {name: getattr(torch.backends.cudnn, name) for name in FLAGS}


@pytest.fixture(autouse=True, params=[(False, True), (False, False), (True, True)], ids=str)
def told(request, monkeypatch):
    """What torch is told outside."""
    for name, value in zip(FLAGS, request.param):
        monkeypatch.setattr(torch.backends.cudnn, name, value)
    return dict(zip(FLAGS, request.param))


def problem(wanted):
    torch.manual_seed(0)
    grad, x, weight = torch.randn(2, 4, 5, 5), torch.randn(2, 3, 5, 5), torch.randn(4, 3, 3, 3)
    return grad, x, weight, [4], [1, 1], [1, 1], [1, 1], False, [0, 0], 1, wanted


class Flags(TorchDispatchMode):
    """Notes the flags whenever aten's gradient is computed."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        if function is aten:
            self.seen.append(flags())
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize("wanted", [[True, True, True], [False, True, False], [True, False, False]])
def test_the_gradients_are_atens(wanted, told):
    found, expected = operator(*problem(wanted)), aten(*problem(wanted))
    for a, b in zip(found, expected, strict=True):
        assert (a is None and b is None) or torch.equal(a, b)
    assert flags() == told


def test_cudnn_is_told_for_the_call_alone(told):
    with Flags() as mode:
        deterministic.convolution_backward(*problem([True, True, True]))
        assert flags() == told
        aten(*problem([True, True, True]))
    assert mode.seen == [{"deterministic": True, "benchmark": False}, told]


def test_a_call_that_fails_leaves_the_flags_as_they_were(told):
    with pytest.raises(RuntimeError):
        operator(*problem([True, True, True])[:3], [4], [1, 1], [1, 1], [1, 1], False, [0, 0], 7, [True, True, True])
    assert flags() == told


def test_the_last_thread_to_leave_gives_the_flags_back(told):
    """One that leaves earlier must not take them from under the others, nor give back what another had set."""
    inside, leave, done = threading.Event(), threading.Event(), []

    def slow():
        with deterministic.deterministic_cudnn():
            inside.set()
            leave.wait(60)
            done.append(flags())

    thread = threading.Thread(target=slow)
    thread.start()
    assert inside.wait(60)
    with deterministic.deterministic_cudnn():
        pass
    assert flags() == {"deterministic": True, "benchmark": False}
    leave.set()
    thread.join()
    assert done == [{"deterministic": True, "benchmark": False}] and flags() == told
