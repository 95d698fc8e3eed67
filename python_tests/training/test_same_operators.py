"""Two steps of a training issue the same operators: nothing in a step depends on values, so a graph can repeat it."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

import nft_ext as nft
from nft_ext import methods

# Operators whose result Python reads, or whose shape depends on values. Each waits for a GPU.
READS = {"_local_scalar_dense", "item", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2"}

# Of class indices on the CPU, before the loss: the message names a wrong one. On CUDA they are not read
# (`checked_target`), and torch's kernel stops.
TARGET_CHECK = ["aten._local_scalar_dense"] * 2


class Recorder(TorchDispatchMode):
    """Every operator below autograd: its name and arguments, a tensor as (its name, shape, strides, type, device)."""

    def __init__(self, lasting):
        super().__init__()
        self.lasting = {tensor.data_ptr(): name for name, tensor in lasting.items()}
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace != "profiler":  # the optimizer's marks for profilers compute nothing
            given = tree_map_only(torch.Tensor, self.described, (args, kwargs or {}))
            self.calls.append((func.overloadpacket._qualified_op_name.replace("::", "."), str(given)))
        return func(*args, **(kwargs or {}))

    def described(self, t):
        return self.lasting.get(t.data_ptr(), ""), tuple(t.shape), t.stride(), t.dtype, str(t.device)


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        *(torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.BatchNorm2d(4), torch.nn.ReLU()),
        *(torch.nn.Conv2d(4, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(4 * 6 * 6, 3)),
    )


METHODS = {
    "noise": methods.NoiseInjection(sigma=0.1),
    "ovf": methods.OVF(sigma=0.1, beta=0.1),
    "irs": methods.IRS(sigma=0.1, beta=0.1, points=(("2", 4), ("4", 2)), input_shape=(1, 8, 8)),
}


@pytest.fixture(params=METHODS)
def recorded(request):
    """The operators of the third and the fourth step, and the addresses of what lasts, before and after both."""
    method = METHODS[request.param]
    model = method.prepare(network(), nft.NVMDevice()).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    x, target = torch.randn(6, 1, 8, 8), torch.arange(6) % 3

    def step():
        optimizer.zero_grad()
        method.loss(model, x, target).backward()
        optimizer.step()

    def lasting():
        momenta = {f"momentum {n}": optimizer.state[p]["momentum_buffer"] for n, p in enumerate(model.parameters())}
        return {"x": x, "target": target, **dict(model.named_parameters()), **dict(model.named_buffers()), **momenta}

    step()
    step()  # the first step makes the momenta and examines the first outputs
    before = lasting()
    runs = []
    for _ in range(2):
        with Recorder(before) as recorder:
            step()
        runs.append(recorder.calls)
    addresses = [{name: t.data_ptr() for name, t in found.items()} for found in (before, lasting())]
    return runs, addresses


def test_two_steps_issue_the_same_operators_on_the_same_shapes(recorded):
    (first, second), _ = recorded
    assert len(first) > 50 and first == second
    names = {name for name, _ in first}
    assert {"nft_ext.noisy_conv2d", "nft_ext.noisy_conv2d_backward", "nft_ext.noisy_linear_backward"} <= names


def test_weights_statistics_and_momenta_stay_at_their_addresses(recorded):
    _, (before, after) = recorded
    assert before == after


def test_the_host_reads_no_value_in_a_step(recorded):
    """Except for the class indices on the CPU."""
    (calls, _), _ = recorded
    reads = [name for name, _ in calls if name.partition(".")[2] in READS]
    assert reads == TARGET_CHECK


def test_no_tensor_of_a_step_comes_from_the_host(recorded):
    """No `torch.tensor(number)`, and no copy to a torch device: on a GPU both wait for the host's memory."""
    (calls, _), _ = recorded
    assert not [call for call in calls if from_host(call)]


def from_host(call):
    name, given = call
    return name in ("aten.lift_fresh", "aten.lift_fresh_copy") or (name == "aten._to_copy" and "'device'" in given)


def test_a_read_and_a_copy_would_show():
    with Recorder({}) as recorder:
        float(torch.tensor([1.0]).to(torch.device("meta"), torch.float64).to("meta").new_ones(1, device="cpu"))
    assert any(name.partition(".")[2] in READS for name, _ in recorder.calls)
    assert sum(map(from_host, recorder.calls)) == 2
