"""Noise is regenerated, never stored: what autograd saves, activation checkpointing, and writes to weights."""

import contextlib

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import nft_ext as nft

NVM = nft.NVMDevice(sigma=0.1)


def deep_net():
    torch.manual_seed(0)
    return nft.convert(nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)), NVM)


X = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("chips", [1, 3])
@pytest.mark.parametrize(
    "make, x",
    [
        (lambda: nft.NoisyLinear(64, 48, nvm=NVM), torch.randn(2, 64)),
        (lambda: nft.NoisyConv2d(16, 24, 3, nvm=NVM), torch.randn(2, 16, 4, 4)),
    ],
    ids=["linear", "conv"],
)
def test_no_noisy_weight_is_saved_for_the_backward(make, x, chips):
    layer, saved = make(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        with nft.chips(layer, draws=range(chips)):
            layer(x)
    large = [t for t in saved if t.numel() >= layer.weight.numel() and t.is_floating_point()]
    assert [t.data_ptr() for t in large] == [layer.weight.data_ptr()]


# ---- activation checkpointing


def gradients(model, forward):
    model.zero_grad()
    y = forward()
    y.square().sum().backward()
    return [y.detach(), *[p.grad.clone() for p in model.parameters()]]


def assert_equal(found, expected):
    for a, b in zip(found, expected):
        assert torch.equal(a, b)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_replays_the_fresh_chips_of_torchs_generator(reentrant):
    model = deep_net()
    x = X.clone().requires_grad_()

    def with_checkpoints():
        torch.manual_seed(2)
        return model[4](checkpoint(model[1:4], model[0](x), use_reentrant=reentrant))

    def without():
        torch.manual_seed(2)
        return model(x)

    assert_equal(gradients(model, with_checkpoints), gradients(model, without))


@contextlib.contextmanager
def replaced(model, forward):
    """`model` with another forward: Sequential has no place for a checkpoint."""
    model.forward = forward
    try:
        yield
    finally:
        del model.forward


@pytest.mark.parametrize("block", ["inner layers", "whole model"])
@pytest.mark.parametrize("draws", [[5], range(3)], ids=["one chip", "three chips"])
def test_checkpointing_inside_contexts_that_are_left_before_the_backward(draws, block):
    model = deep_net()

    def forward(checkpointed):
        with nft.noise(model, sigma=0.3), nft.chips(model, seed=4, draws=draws):
            if not checkpointed:
                return model(X)
            options = dict(use_reentrant=False, context_fn=nft.checkpoint_contexts(model))
            if block == "whole model":
                return checkpoint(model, X, **options)
            with replaced(model, lambda x: model[4](checkpoint(model[:4], x, **options))):
                return model(X)

    assert_equal(gradients(model, lambda: forward(True)), gradients(model, lambda: forward(False)))
    assert all(layer.noise_state()[1] is None for layer in nft.noisy_layers(model).values())


def test_checkpointing_of_several_sigmas_as_ovf_uses_it():
    model = deep_net()

    def forward(checkpointed):
        total = 0
        for n in range(3):
            with nft.noise(model, sigma=0.1 + 0.05 * n), nft.chips(model, draws=[n]):
                if checkpointed:
                    total = total + checkpoint(model, X, use_reentrant=False, context_fn=nft.checkpoint_contexts(model))
                else:
                    total = total + model(X)
        return total

    assert_equal(gradients(model, lambda: forward(True)), gradients(model, lambda: forward(False)))


# ---- every write to a weight counts, however it is made: no forward uses what an earlier one computed


def other_weight(layer):
    return torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(7))


def in_place(layer):
    layer.weight.copy_(other_weight(layer))


def scaled(layer):
    layer.weight.mul_(0.5)


def optimizer_step(layer):
    layer.weight.grad = other_weight(layer)
    torch.optim.Adam(layer.parameters(), 0.1).step()


def fused_optimizer_step(layer):
    layer.weight.grad = other_weight(layer)
    torch.optim.SGD(layer.parameters(), 0.1, fused=True).step()


def load(layer):
    layer.load_state_dict({"weight": other_weight(layer)})


def load_assign(layer):
    layer.load_state_dict({"weight": other_weight(layer)}, assign=True)


def new_parameter(layer):
    layer.weight = nn.Parameter(other_weight(layer))


def data(layer):
    layer.weight.data.copy_(other_weight(layer))


def data_under_another_version(layer):
    """As an all_reduce on weight.data, or an average of models made by hand."""
    torch.add(layer.weight.data, other_weight(layer), out=layer.weight.data)


def numpy_view(layer):
    layer.weight.detach().numpy()[:] = other_weight(layer).numpy()


def dlpack(layer):
    np.from_dlpack(layer.weight.detach())[:] = other_weight(layer).numpy()


def storage(layer):
    torch.tensor([], dtype=torch.float32).set_(layer.weight.untyped_storage())[:18] = other_weight(layer).flatten()


def one_vector(layer):
    """All parameters as views of one buffer, which is then written."""
    vector = nn.utils.parameters_to_vector(layer.parameters()).detach()
    nn.utils.vector_to_parameters(vector, layer.parameters())
    layer(torch.eye(6))
    vector.copy_(other_weight(layer).flatten())


def to_another_type_and_back(layer):
    layer.to(torch.bfloat16).to(torch.float32)


CHANGES = [
    in_place,
    scaled,
    optimizer_step,
    fused_optimizer_step,
    load,
    load_assign,
    new_parameter,
    data,
    data_under_another_version,
    numpy_view,
    dlpack,
    storage,
    one_vector,
    to_another_type_and_back,
]
CALLS = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "gradients": contextlib.nullcontext,
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
def test_every_forward_reads_the_weight(change, call):
    layer = nft.NoisyLinear(6, 3, bias=False, nvm=NVM)
    with nft.noise(layer, enabled=False):
        with CALLS[call]():
            before, *_ = [layer(torch.eye(6)) for _ in range(3)]  # the third call uses the remembered max|W|
        with torch.no_grad():
            change(layer)
        with CALLS[call]():
            expected = nft.program_weights(layer.weight.detach().clone(), NVM, enabled=False)[0]
            assert torch.equal(layer(torch.eye(6)).t(), expected)
            assert not torch.equal(layer(torch.eye(6)), before)


@pytest.mark.parametrize("fused", [False, True])
def test_every_forward_reads_the_weight_inside_a_context_and_in_a_cascade(fused):
    torch.manual_seed(0)
    model = nft.convert(nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)), NVM).eval()
    run = nft.fuse(model) if fused else model
    with torch.no_grad(), nft.chips(run, seed=3, draws=range(2)):
        before = run(torch.eye(6))
        nft.noisy_layers(run)["0"].weight.data.mul_(-1.0)
        after = run(torch.eye(6))
    nft.noisy_layers(model)["0"].weight.data.copy_(nft.noisy_layers(run)["0"].weight)
    with torch.no_grad(), nft.chips(model, seed=3, draws=range(2)):
        torch.testing.assert_close(after, model(torch.eye(6)))
    assert not torch.allclose(after, before)


def test_another_weight_at_the_same_address_counts():
    memory = np.ones((3, 6), np.float32)
    layer = nft.NoisyLinear(6, 3, bias=False, nvm=NVM)
    with torch.no_grad(), nft.noise(layer, enabled=False):
        for value in (1.0, 2.0):
            memory[:] = value
            layer.weight = nn.Parameter(torch.from_numpy(memory))
            assert layer(torch.eye(6)).unique().tolist() == [value]


@pytest.mark.parametrize("device", [NVM, NVM.replace(weight_bits=16, device_bits=4), NVM.replace(clip=(0, 1))], ids=str)
def test_forwards_with_and_without_gradients_are_the_same_chip(device):
    layer, x = nft.NoisyConv2d(4, 8, 3, nvm=device), torch.randn(2, 4, 6, 6)
    with nft.chips(layer, seed=3, draws=range(2)):
        with torch.no_grad():
            first, second = layer(x), layer(x)
        assert torch.equal(first, layer(x))
        assert torch.equal(first, second)


def test_what_inference_mode_made_serves_training():
    """Tables made under torch.inference_mode must not break a later backward."""
    nvm = NVM.replace(sigma=0.1234)
    with torch.inference_mode():
        nft.program_weights(torch.randn(3, 6), nvm)
        layer = nft.convert(nn.Linear(6, 3), NVM)
    layer = nft.convert(nn.Linear(6, 3), nvm)
    with torch.inference_mode():
        layer(X)
    layer(X).sum().backward()
    assert layer.weight.grad is not None
