"""Forwards replaced on an instance: noise that a model only seems to have is refused, wrappers keep working."""

import functools
import types

import pytest
import torch
from torch import nn

import nft_ext as nft

NVM = nft.NVMDevice(sigma=0.3)
X = torch.randn(8, 6, generator=torch.Generator().manual_seed(1))


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 4)).eval()


def hook(module):
    """Wraps the forward as accelerate's `add_hook_to_module` does."""
    module._old_forward = module.forward

    def new_forward(module, *args, **kwargs):
        return module._old_forward(*args, **kwargs)

    module.forward = functools.update_wrapper(functools.partial(new_forward, module), module._old_forward)


def unhook(module):
    """As accelerate's `remove_hook_from_module`, which leaves the class's forward on the instance."""
    module.forward = module._old_forward
    del module._old_forward


def bypassed(noisy):
    noisy[2].forward = types.MethodType(nn.Linear.forward, noisy[2])
    return noisy


# ---- copies: convert, restore, program


@pytest.mark.parametrize("method", ["forward", "_conv_forward", "_call_impl"])
def test_convert_refuses_a_layer_with_a_replaced_method(method):
    model = nn.Sequential(nn.Conv2d(3, 3, 1))
    setattr(model[0], method, getattr(nn.Conv2d(3, 3, 1), method))
    with pytest.raises(ValueError, match=rf"0\.{method}: .*remove_hook_from_submodules\), convert, then add"):
        nft.convert(model, NVM)


def test_hooked_layers_are_refused_by_name_and_unhooked_ones_are_noisy():
    model = network()
    for module in model.modules():
        hook(module)
    with pytest.raises(ValueError, match=r"0\.forward: must be that of the layer's class"):
        nft.convert(model, NVM)
    assert nft.noisy_layers(nft.convert(nn.Sequential(model, nn.Linear(4, 4)), NVM, include="1"))
    for module in model.modules():
        unhook(module)
    noisy = nft.convert(model, NVM)
    assert not torch.equal(noisy(X), noisy(X))
    assert torch.equal(nft.restore(noisy)(X), network()(X))


def test_a_hook_on_a_container_is_copied_with_it():
    model = network()
    hook(model)
    noisy = nft.convert(model, NVM)
    assert not torch.equal(noisy(X), noisy(X))
    assert torch.equal(nft.restore(noisy)(X), network()(X))


@pytest.mark.parametrize("task", [nft.restore, nft.program])
def test_hooked_noisy_layers_are_refused(task):
    noisy = nft.convert(network(), NVM)
    hook(noisy[2])
    with pytest.raises(ValueError, match=rf"2\.forward: .*, {task.__name__}, then add them again; got partial"):
        task(noisy)
    unhook(noisy[2])
    assert torch.equal(task(noisy)(X), task(nft.convert(network(), NVM))(X))


def closure(model):
    old = model.forward
    model.forward = lambda x: old(x)


def partial(model):
    model.forward = functools.partial(lambda old, x: old(x), model.forward)
    kept = model.forward
    model.forward = types.MethodType(lambda self, x: kept(x), model)


@pytest.mark.parametrize(
    "replace", [closure, partial, lambda m: setattr(m, "forward", torch.compile(m.forward, backend="eager"))]
)
def test_a_copy_never_runs_the_layers_of_the_original(replace):
    for model, task in ((network(), lambda m: nft.convert(m, NVM)), (nft.convert(network(), NVM), nft.restore)):
        replace(model)
        with pytest.raises(ValueError, match=r"model: must not have a forward that was replaced by a function"):
            task(model)
    with pytest.raises(ValueError, match=r"replaced by a function"):
        model = network()
        replace(model)
        nft.methods.Vanilla().prepare(model)


def test_everything_that_refers_to_a_layer_sees_the_noisy_one():
    class Listed(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(6, 4)
            self.order = [self.fc]

        def forward(self, x):
            return self.order[0](x)

    noisy = nft.convert(Listed(), NVM)
    assert not torch.equal(noisy(X), noisy(X))
    for plain in (nft.restore(noisy), nft.program(noisy)):
        assert plain.order[0] is plain.fc and type(plain.fc) is nn.Linear and torch.equal(plain(X), plain(X))


# ---- contexts: evidence of each call


def test_a_hook_added_after_the_conversion_keeps_the_noise():
    noisy, hooked = nft.convert(network(), NVM), nft.convert(network(), NVM)
    for module in hooked.modules():
        hook(module)
    for model in (hooked, torch.compile(hooked, backend="eager")):
        with nft.chips(noisy, draws=[0, 1]), nft.chips(model, draws=[0, 1]):
            torch.testing.assert_close(model(X), noisy(X))
    data = (X, torch.arange(8) % 4)
    reports = [nft.monte_carlo(model, data, runs=4, progress=False) for model in (noisy, hooked)]
    assert reports[0].accuracy.per_run.tolist() == reports[1].accuracy.per_run.tolist()
    assert reports[1].observed["never_ran"] == []


@pytest.mark.parametrize("context", [nft.chips, nft.noise])
def test_a_bypassed_layer_is_refused_in_a_context(context):
    noisy = bypassed(nft.convert(network(), NVM))
    rule = r"2\.forward: must end in the forward of NoisyLinear or NoisyConv2d, .*, so remove it \(del layer\.forward\)"
    with context(noisy), pytest.raises(ValueError, match=rule):
        noisy(X)


def test_a_bypassed_layer_is_refused_by_monte_carlo_and_program():
    data = (X, torch.arange(8) % 4)
    for noisy in (
        bypassed(nft.convert(network(), NVM)),
        torch.compile(bypassed(nft.convert(network(), NVM)), backend="eager"),
    ):
        with pytest.raises(ValueError, match=r"2\.forward: must end in the forward of NoisyLinear"):
            nft.monte_carlo(noisy, data, runs=2, progress=False)
        with pytest.raises(ValueError, match=r"2\.forward: must be that of the layer's class"):
            nft.program(noisy)


def test_a_subclass_whose_forward_leaves_out_the_noise_is_refused():
    class Exact(nft.NoisyLinear):
        def forward(self, x):
            return nn.functional.linear(x, self.weight, self.bias)

    noisy = nn.Sequential(Exact(6, 4, nvm=NVM))
    with pytest.raises(ValueError, match=r"0\.forward: must end in the forward .* bypasses the noise; got Exact"):
        nft.monte_carlo(noisy, (X, torch.arange(8) % 4), runs=2, progress=False)


def test_contexts_leave_nothing_on_the_layers():
    noisy = nft.convert(network(), NVM)
    hook(noisy[0])
    before = dict(vars(noisy[0]))
    with nft.chips(noisy), nft.noise(noisy, sigma=0.1):
        noisy(X)
    assert vars(noisy[0]).keys() - {"scaled"} == before.keys() and not noisy[0]._forward_hooks
