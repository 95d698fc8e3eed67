"""convert and restore with inplace=True: the same objects, no second copy, all or nothing."""

import copy
import warnings

import pytest
import torch
from torch import nn

import nft_ext as nft

NVM = nft.NVMDevice(sigma=0.1)
X = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Sequential(nn.ReLU(), nn.Linear(5, 5)), nn.Linear(5, 3))


def facts(model):
    """Classes and attributes of all modules, and all objects by identity."""
    return [
        (id(m), type(m), {k: id(v) for k, v in vars(m).items()}, {k: id(p) for k, p in m._parameters.items()})
        for m in model.modules()
    ]


def on_chips(model, draws=(0, 1)):
    with torch.no_grad(), nft.chips(model, seed=3, draws=draws):
        return model(X)


def test_modules_parameters_hooks_and_optimizers_stay_the_same_objects():
    model = network()
    seen = []
    model[0].register_forward_hook(lambda *_: seen.append("hook"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    modules, parameters = list(model.modules()), list(model.parameters())
    addresses = [p.data_ptr() for p in parameters]
    assert nft.convert(model, NVM, inplace=True) is model
    assert all(a is b for a, b in zip(model.modules(), modules))
    assert all(a is b for a, b in zip(model.parameters(), parameters))
    assert [p.data_ptr() for p in model.parameters()] == addresses
    before = model[0].weight.detach().clone()
    model(X).square().sum().backward()
    optimizer.step()
    assert seen == ["hook"] and not torch.equal(model[0].weight, before)
    assert nft.restore(model, inplace=True) is model
    assert [type(m) for m in model.modules()] == [type(m) for m in network().modules()]
    assert all(a is b for a, b in zip(model.parameters(), parameters))


def test_the_chips_are_those_of_a_converted_copy():
    expected = on_chips(nft.convert(network(), NVM))
    model = nft.convert(network(), NVM, inplace=True)
    assert torch.equal(on_chips(model), expected)
    plain = nft.restore(model, inplace=True)
    assert torch.equal(plain(X), network()(X))
    assert torch.equal(on_chips(nft.convert(plain, NVM, inplace=True)), expected)


def test_other_owners_of_the_model_see_the_noise():
    model = network()
    holder = nn.ModuleDict({"a": model, "b": nn.Linear(3, 2)})
    nft.convert(model, NVM, inplace=True)
    assert isinstance(holder["a"][0], nft.NoisyLinear) and type(holder["b"]) is nn.Linear


def _not_finite(model):
    with torch.no_grad():
        model[2].weight[0, 0] = float("nan")
    return {}


def _replaced(model):
    model[2].forward = lambda x: x
    return {}


@pytest.mark.parametrize(
    "spoil",
    [
        _not_finite,
        _replaced,
        lambda model: {"include": "no such layer"},
        lambda model: {"exclude": nn.Linear},
        lambda model: {"example": torch.randn(2, 7)},
    ],
    ids=["not finite", "replaced forward", "no layer", "none left", "bad example"],
)
def test_an_error_changes_nothing(spoil):
    model = network()
    options = spoil(model)
    before = facts(model)
    with pytest.raises(ValueError):
        nft.convert(model, NVM, inplace=True, **options)
    assert facts(model) == before


def test_a_warning_made_an_error_changes_nothing():
    model = nn.ModuleDict({"a": nn.TransformerEncoderLayer(8, 2), "b": nn.Linear(4, 4)})
    model["b"].inner = [nn.Linear(4, 4)]
    before = facts(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="in a plain list"):
            nft.convert(model, NVM, inplace=True)
    assert facts(model) == before


@pytest.mark.parametrize("context", [nft.chips, lambda model: nft.noise(model, enabled=False)], ids=["chips", "noise"])
@pytest.mark.parametrize("task", [lambda m: nft.convert(m, NVM, inplace=True), lambda m: nft.restore(m, inplace=True)])
def test_inside_a_context_it_is_refused(context, task):
    model = nft.convert(network(), NVM)
    with context(model):
        before = facts(model)
        with pytest.raises(RuntimeError, match="inplace: must be False inside nft_ext.noise and nft_ext.chips"):
            task(model)
        assert facts(model) == before
    task(model)


def test_a_model_that_cannot_be_copied_is_converted_in_place():
    model = network()
    model.generator = (x for x in "")  # copy.deepcopy refuses it
    with pytest.raises(ValueError, match="copy.deepcopy"):
        nft.convert(model, NVM)
    expected = on_chips(nft.convert(network(), NVM))
    assert torch.equal(on_chips(nft.convert(model, NVM, inplace=True)), expected)


def test_a_compiled_model_computes_with_noise_after_the_conversion():
    """torch guards on the classes of modules."""
    model = network()
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        exact = compiled(X)
        nft.convert(model, NVM, inplace=True)
        with nft.chips(model, seed=3):
            assert torch.equal(compiled(X), on_chips(nft.convert(network(), NVM), [0]))
        nft.restore(model, inplace=True)
        assert torch.equal(compiled(X), exact)


def test_tied_weights_stay_tied():
    model = network()
    model[2] = nn.Linear(5, 5)
    model[2].weight = model[1][1].weight
    expected = on_chips(nft.convert(copy.deepcopy(model), NVM))
    nft.convert(model, NVM, inplace=True)
    assert model[2].weight is model[1][1].weight
    assert torch.equal(on_chips(model), expected)


def test_inplace_is_true_or_false():
    for task in (lambda m: nft.convert(m, NVM, inplace=1), lambda m: nft.restore(m, inplace="yes")):
        with pytest.raises(ValueError, match="inplace: must be True or False"):
            task(nft.convert(network(), NVM))
