"""What a backward runs again has the noise of the forward: activation checkpointing of every kind, compiled graphs."""

import re

import pytest
import torch
from torch import nn
from torch._functorch import config
from torch.utils.checkpoint import checkpoint

import nft_ext as nft
from nft_ext import methods
from nft_ext.ops.same_noise import OTHER_NOISE

NVM = nft.NVMDevice(sigma=0.2)
X = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
TARGET = torch.tensor([0, 1, 2, 0])


class Again(torch.autograd.Function):
    """Checkpointing as libraries write it for themselves, reentrant and without torch's function."""

    @staticmethod
    def forward(ctx, run_function, x):
        ctx.run_function = run_function
        ctx.save_for_backward(x)
        with torch.no_grad():
            return run_function(x)

    @staticmethod
    def backward(ctx, grad):
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            y = ctx.run_function(x)
        torch.autograd.backward(y, grad)
        return None, x.grad


class Hidden(torch.autograd.Function):
    """The same, with nothing that tells what it will run again."""

    @staticmethod
    def forward(ctx, function, x):
        ctx.hidden = function
        ctx.save_for_backward(x)
        with torch.no_grad():
            return function(x)

    @staticmethod
    def backward(ctx, grad):
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            y = ctx.hidden(x)
        torch.autograd.backward(y, grad)
        return None, x.grad


KINDS = {
    "plain": lambda f, x: f(x),
    "checkpoint": lambda f, x: checkpoint(f, x, use_reentrant=False),
    "reentrant": lambda f, x: checkpoint(f, x, use_reentrant=True),
    "own function": Again.apply,
}


class Net(nn.Module):
    """Three blocks; `kind` says how each is run, as gradient_checkpointing_enable() of other libraries does."""

    def __init__(self, kind="plain"):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Linear(6, 16)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Dropout(0.25)) for _ in range(3))
        self.head = nn.Linear(16, 3)
        self.kind = kind

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = KINDS[self.kind](block, x)
        return self.head(x)


def net(kind="plain", nested=None):
    model = nft.convert(Net(kind), NVM)
    if nested:
        model.blocks[1] = Nested(model.blocks[1], nested)
    return model


class Nested(nn.Module):
    """A region in a region, with something after it."""

    def __init__(self, block, kind):
        super().__init__()
        self.block, self.kind = block, kind
        self.after = nft.convert(nn.Sequential(nn.Linear(16, 16), nn.Sigmoid()), NVM)

    def forward(self, x):
        return self.after(KINDS[self.kind](self.block, x))


def gradients(model, run):
    torch.manual_seed(2)
    model.zero_grad()
    y = run(model)
    y.square().sum().backward()
    return [y.detach(), *[p.grad.clone() for p in model.parameters()]]


def assert_equal(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


def fresh(model):
    return model(X)


def inside_chips(model):
    with nft.chips(model, seed=4, draws=[5]):
        return model(X)


def three_chips(model):
    with nft.chips(model, seed=4, draws=range(3)):
        return model(X)


def another_sigma(model):
    with nft.noise(model, sigma=0.35):
        return model(X)


def noise_off(model):
    with nft.noise(model, enabled=False):
        return model(X)


def several(model):
    """Forwards in several contexts before one backward, as OVF has them."""
    total = model(X)
    for n in range(1, 3):
        with nft.noise(model, sigma=0.1 * n), nft.chips(model, draws=[n]):
            total = total + model(X)
    return total


CONTEXTS = [fresh, inside_chips, three_chips, another_sigma, noise_off, several]


@pytest.mark.parametrize("nested", [None, "checkpoint", "reentrant"])
@pytest.mark.parametrize("kind", ["checkpoint", "reentrant"])
@pytest.mark.parametrize("run", CONTEXTS, ids=lambda f: f.__name__)
def test_a_recomputation_has_the_noise_of_the_forward(run, kind, nested):
    """The contexts have ended when the backward runs the blocks again."""
    assert_equal(gradients(net(kind, nested), run), gradients(net("plain", nested and "plain"), run))


@pytest.mark.parametrize("nested", [None, "own function", "checkpoint"])
@pytest.mark.parametrize("run", [inside_chips, three_chips, noise_off], ids=lambda f: f.__name__)
def test_checkpointing_by_other_libraries_too(run, nested):
    """This kind restores no random state, so the test leaves out dropout and keys from torch's generator."""
    models = net("own function", nested), net("plain", nested and "plain")
    for m in (m for model in models for m in model.modules() if isinstance(m, nn.Dropout)):
        m.p = 0.0
    assert_equal(gradients(models[0], run), gradients(models[1], run))


def test_a_whole_model_may_be_the_region():
    model = net()
    for options in (dict(use_reentrant=False), dict(use_reentrant=True)):

        def run(model, options=options):
            x = X.clone().requires_grad_()
            with nft.chips(model, seed=4, draws=range(3)):
                return checkpoint(model, x, **options)

        assert_equal(gradients(model, run), gradients(model, three_chips))


def test_a_graph_may_be_walked_twice():
    model = net("checkpoint")
    y = inside_chips(model)
    first = torch.autograd.grad(y.sum(), model.stem.weight, retain_graph=True)[0]
    assert torch.equal(first, torch.autograd.grad(y.sum(), model.stem.weight)[0])


@pytest.mark.parametrize("kind", ["checkpoint", "reentrant"])
@pytest.mark.parametrize(
    "method",
    [
        methods.NoiseInjection(sigma=0.1),
        methods.OVF(sigma=0.1, beta=0.1, feedbacks=2),
        methods.Censored(sigma=0.1, c=1.0),
    ],
    ids=lambda m: m.name,
)
def test_training_methods_work_on_checkpointed_models(method, kind):
    results = []
    for name in ("plain", kind):
        model = method.prepare(Net(name)).train()
        torch.manual_seed(3)
        method.loss(model, X, TARGET).backward()
        results.append([p.grad for p in model.parameters()])
    assert_equal(*results)


def test_noise_that_was_not_restored_is_refused():
    """A recomputation outside of its contexts that nothing announced, and a moved random state."""
    model = nft.convert(nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3)), NVM)
    message = re.escape(OTHER_NOISE[0])
    x = X.clone().requires_grad_()
    for context in (nft.chips(model, draws=[3]), nft.noise(model, sigma=0.3)):
        with context:
            y = Hidden.apply(model, x)
        with pytest.raises(RuntimeError, match=message):
            y.sum().backward()
    with nft.chips(model, draws=[3]):
        Hidden.apply(model, x).sum().backward()  # the context still holds
    y = checkpoint(model, X, use_reentrant=False, preserve_rng_state=False)
    with pytest.raises(RuntimeError, match=message):
        y.sum().backward()


@pytest.mark.parametrize("kind", ["checkpoint", "reentrant"])
@pytest.mark.parametrize("run", [inside_chips, three_chips, another_sigma, noise_off], ids=lambda f: f.__name__)
def test_other_forwards_before_the_backward_change_nothing(run, kind):
    """In eval mode too, where a region without gradients looks like an evaluation."""

    def with_others(model):
        y = run(model)
        with torch.no_grad():
            model(X)
            inside_chips(model)
        return y

    models = net(kind).eval(), net("plain").eval()
    assert_equal(gradients(models[0], with_others), gradients(models[1], run))


def test_a_backward_inside_a_context_that_the_forward_was_not_in_is_refused():
    model = net("reentrant").eval()
    y = model(X)
    with nft.chips(model, draws=[9]), pytest.raises(RuntimeError, match=re.escape(OTHER_NOISE[0])):
        y.sum().backward()


def test_states_are_as_before_after_a_recomputation_and_after_one_that_fails():
    model = net("checkpoint")
    y = inside_chips(model)
    handle = model.blocks[0].register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(OSError("broken")))
    with pytest.raises(OSError, match="broken"):
        y.sum().backward()
    handle.remove()
    assert all(layer.noise_state()[1] is None for layer in nft.noisy_layers(model).values())
    inside_chips(model).sum().backward()
    assert all(layer.noise_state()[1] is None for layer in nft.noisy_layers(model).values())


# ---- compiled graphs


@pytest.mark.parametrize("settings", [{}, dict(activation_memory_budget=0.0)], ids=str)
@pytest.mark.parametrize("run", [fresh, inside_chips], ids=lambda f: f.__name__)
def test_a_compiled_backward_recomputes_with_the_noise_of_the_forward(run, settings):
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = nft.convert(nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)), NVM)
    expected = gradients(model, run)
    with config.patch(**settings):
        fast = torch.compile(model, backend="aot_eager_decomp_partition")
        torch.manual_seed(2)
        model.zero_grad()
        if run is fresh:
            y = fast(X)
        else:
            with nft.chips(model, seed=4, draws=[5]):
                y = fast(X)
        y.square().sum().backward()
    found = [y.detach(), *[p.grad for p in model.parameters()]]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
