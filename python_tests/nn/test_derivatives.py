"""Derivatives of models with noisy layers: in contexts, compiled, checkpointed, fused, in float64."""

import copy

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import func, nn
from torch._dynamo.backends.common import aot_autograd
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

import nft_ext as nft
from nft_ext import reference
from support.products import random

NVM = nft.NVMDevice(sigma=0.1)
X, DIRECTION = random(3, 1, 4, 4).double(), random(3, 1, 4, 4, seed=1).double()


def network():
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 2, 3, padding=1), nn.Tanh(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 3)
    return nft.convert(nn.Sequential(*layers), NVM).double()


def by_definition(model, draws):
    """The model on these chips as a function of (parameters, x): nft_ext.reference in float64."""
    conv, linear = nft.noisy_layers(model).values()
    key = nft.noise_key(5, draws)
    table, spec = torch.from_numpy(NVM.operator_table()), NVM.operator_spec()

    def run(p, x):
        weight, bias = p["0.weight"], p["0.bias"]
        y = reference.noisy_conv2d(x, weight, bias, table, key, conv.stream, spec, 1, 1, 1, 1, True).tanh()
        y = nn.functional.max_pool2d(y, 2).flatten(1)
        return reference.noisy_linear(y, p["4.weight"], p["4.bias"], table, key, linear.stream, spec, False)

    return run


def parameters(model):
    return {name: p.detach() for name, p in model.named_parameters()}


def assert_close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def step(run, p, x):
    """One inner step of gradient descent on the parameters, then the loss."""
    grads = func.grad(lambda p: run(p, x).square().sum())(p)
    return run({name: p[name] - 0.01 * grads[name] for name in p}, x).square().sum()


def penalty(run, p, x):
    """The norm of the input's gradient."""
    return func.grad(lambda x: run(p, x).pow(3).sum())(x).square().sum()


@pytest.mark.parametrize("draws", [[0], [0, 7]])
@pytest.mark.parametrize("objective", [step, penalty])
def test_meta_learning_and_gradient_penalties(objective, draws):
    model = network()
    p = parameters(model)
    expected = func.grad(lambda p: objective(by_definition(model, draws), p, X))(p)
    with nft.chips(model, seed=5, draws=draws):
        assert_close(func.grad(lambda p: objective(lambda p, x: func.functional_call(model, p, x), p, X))(p), expected)


def test_a_gradient_penalty_by_autograd_trains_the_model():
    model = network()
    expected = func.grad(lambda p: penalty(by_definition(model, [0]), p, X))(parameters(model))
    with nft.chips(model, seed=5):
        x = X.clone().requires_grad_()
        (grad,) = torch.autograd.grad(model(x).pow(3).sum(), x, create_graph=True)
        grad.square().sum().backward()
    assert_close(
        {name: p.grad for name, p in model.named_parameters() if p.grad is not None},
        {name: g for name, g in expected.items() if name != "4.bias" or g.any()},
    )


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("programmed", [True, False])
def test_tangents_of_inputs_and_weights_pass_through_contexts(programmed, gradients):
    model = network()
    p = parameters(model)
    tangents = {name: torch.ones_like(value) for name, value in p.items()}
    expected = func.jvp(by_definition(model, [0, 7]), (p, X), (tangents, DIRECTION))
    with nft.chips(model, seed=5, draws=[0, 7], programmed=programmed), torch.set_grad_enabled(gradients):
        found = func.jvp(lambda p, x: func.functional_call(model, p, x), (p, X), (tangents, DIRECTION))
        assert_close(found, expected)
        with forward_ad.dual_level():
            given = {name: forward_ad.make_dual(p[name], tangents[name]) for name in p}
            y = func.functional_call(model, given, forward_ad.make_dual(X, DIRECTION))
            assert_close(tuple(forward_ad.unpack_dual(y)), expected)


def test_a_checkpoint_is_differentiated_twice():
    model = network()

    def gradients(run):
        x = X.clone().requires_grad_()
        (grad,) = torch.autograd.grad(run(x).pow(3).sum(), x, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), [x, model[0].weight, model[4].weight])

    with nft.chips(model, seed=5):
        assert_close(gradients(lambda x: checkpoint(model, x, use_reentrant=False)), gradients(model))


COMPILED = {
    "jvp": lambda run: lambda x: func.jvp(run, (x,), (2 * x,))[1],
    "gradients per sample": lambda run: torch.vmap(func.grad(lambda x: run(x[None]).pow(2).sum())),
}


@pytest.mark.parametrize("kind", COMPILED)
def test_transforms_are_compiled(kind):
    torch._dynamo.reset()
    model = nft.convert(nn.Linear(5, 3), NVM)
    with nft.chips(model, seed=5):
        function, x = COMPILED[kind](model), random(4, 5)
        compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), function(x))


def test_a_compiled_training_step_computes_with_the_kernels():
    torch._dynamo.reset()
    graphs = []

    def keep(graph, _):
        graphs.append({node.target for node in graph.graph.nodes})
        return make_boxed_func(graph.forward)

    model = nft.convert(nn.Linear(5, 3), NVM)
    with nft.chips(model, seed=5):
        torch.compile(model, backend=aot_autograd(fw_compiler=keep, bw_compiler=keep))(random(4, 5)).sum().backward()
    ops = torch.ops.nft_ext
    forward, backward = graphs
    assert ops.noisy_linear.default in forward
    assert ops.noisy_linear_backward.default in backward
    assert ops.program.default not in forward | backward


# ---- fused layers: for inference


def fused():
    layers = nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 2, 3), nn.ReLU()
    model = nft.convert(nn.Sequential(*layers), NVM).eval()
    return model, nft.fuse(model)


@pytest.mark.parametrize("gradients", [True, False])
def test_fused_layers_refuse_a_tangent(gradients):
    model, x = fused()[1], X.float()
    with nft.chips(model), torch.no_grad():
        model(x)
        model(x)  # checks passed, operands known
    with nft.chips(model), torch.set_grad_enabled(gradients):
        with pytest.raises(RuntimeError, match="must not have a tangent"):
            func.jvp(model, (x,), (x,))
        with forward_ad.dual_level(), pytest.raises(RuntimeError, match="must not have a tangent"):
            model(forward_ad.make_dual(x, x))


def test_fused_layers_in_float64_are_the_unfused_ones():
    model, together = (copy.deepcopy(m).double() for m in fused())
    with nft.chips(model, seed=1, draws=range(2)), torch.no_grad():
        expected = model(X)
    for programmed in (False, True):
        with nft.chips(together, seed=1, draws=range(2), programmed=programmed), torch.no_grad():
            for _ in range(2):  # the second call knows its operands
                torch.testing.assert_close(together(X), expected, rtol=1e-6, atol=1e-6)  # batch-norm rows: float32
                assert together(X).dtype == torch.float64
                assert together(X.float()).dtype == torch.float32


def test_layers_in_float64_have_the_noise_of_float32():
    model = network()
    with nft.chips(model, seed=5, draws=[0, 7]):
        assert_close(model(X), by_definition(model, [0, 7])(dict(model.named_parameters()), X))
        single = copy.deepcopy(model).float()
    with nft.chips(single, seed=5, draws=[0, 7]):
        torch.testing.assert_close(single(X), model_output(model), rtol=1e-6, atol=1e-6)


def model_output(model):
    with nft.chips(model, seed=5, draws=[0, 7]):
        return model(X)
