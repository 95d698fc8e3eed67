"""Weights that are no plain parameters of their layer: converted, or refused with what to do first."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

import nft_ext as nft

NVM = nft.NVMDevice(sigma=0.2)
X = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
UNDO = {
    "pruned": (lambda layer: prune.l1_unstructured(layer, "weight", 0.3), lambda layer: prune.remove(layer, "weight")),
    "bias pruned": (
        lambda layer: prune.random_unstructured(layer, "bias", 0.5),
        lambda layer: prune.remove(layer, "bias"),
    ),
    "weight norm": (nn.utils.weight_norm, nn.utils.remove_weight_norm),
    "spectral norm": (nn.utils.spectral_norm, nn.utils.remove_spectral_norm),
}
PARAMETRIZED = (
    lambda layer: parametrize.register_parametrization(layer, "weight", nn.Tanh()),
    lambda layer: parametrize.remove_parametrizations(layer, "weight"),
)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 4)).eval()


@pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")
@pytest.mark.parametrize("change, undo", UNDO.values(), ids=UNDO)
def test_a_weight_made_of_other_tensors_is_converted_and_restored(change, undo):
    model = network()
    change(model[0])
    noisy = nft.convert(model, NVM)
    assert list(noisy.state_dict()) == list(model.state_dict())
    assert torch.equal(nft.restore(noisy)(X), model(X))
    for layer in (noisy, model):
        undo(layer[0])
    assert torch.equal(nft.restore(noisy)(X), model(X))


@pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")
@pytest.mark.parametrize("task", [nft.restore, nft.program])
@pytest.mark.parametrize("change, undo", [*UNDO.values(), PARAMETRIZED], ids=[*UNDO, "parametrized"])
def test_the_same_of_noisy_layers(change, undo, task):
    noisy = nft.convert(network(), NVM).requires_grad_(False)
    change(noisy[0])
    with pytest.raises(ValueError, match=rf"0.*: must .*then {task.__name__}; got"):
        task(noisy)
    undo(noisy[0])
    assert type(task(noisy)[0]) is nn.Linear


def test_a_parametrization_can_be_removed_on_either_side_of_convert_and_restore():
    model = network()
    PARAMETRIZED[0](model[0])
    expected = model(X)
    noisy = nft.convert(model, NVM)
    back = nft.restore(noisy)
    assert parametrize.is_parametrized(back[0], "weight") and torch.equal(back(X), expected)
    PARAMETRIZED[1](noisy[0])
    assert isinstance(noisy[0], nn.Linear) and list(nft.noisy_layers(noisy)) == ["0", "2"]
    assert torch.equal(nft.restore(noisy)(X), expected)
    assert parametrize.is_parametrized(back[0], "weight") and torch.equal(model(X), expected)


def test_a_pruned_layer_that_is_not_converted_is_copied_as_it_is():
    model = network()
    UNDO["pruned"][0](model[0])
    assert torch.equal(nft.restore(nft.convert(model, NVM, include="2"))(X), model(X))


def test_weights_without_values_are_refused():
    with torch.device("meta"):
        model = network()
    with pytest.raises(ValueError, match=r"0\.weight: must have values, .*load_state_dict\(\.\.\., assign=True\)"):
        nft.program(nft.convert(model, NVM))  # `convert` alone takes them: test_arriving_weights.py
    model.load_state_dict(network().state_dict(), assign=True)
    noisy = nft.convert(model, NVM)
    assert torch.equal(nft.restore(noisy)(X), network()(X))
    with pytest.raises(ValueError, match=r"0\.weight: must have values, .*, then program"):
        nft.program(noisy.to("meta"))


def test_lazy_layers_are_refused_until_they_have_a_shape():
    model = nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 2))
    with pytest.raises(ValueError, match="0: must have its shape: run the model once.*; got LazyLinear"):
        nft.convert(model, NVM)
    model(X)
    assert list(nft.noisy_layers(nft.convert(model, NVM))) == ["0", "1"]


@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64])
def test_weights_that_are_no_real_numbers_are_refused(dtype):
    model = network()
    model[2].weight = nn.Parameter(torch.ones(4, 6).to(dtype), requires_grad=False)
    with pytest.raises(TypeError, match=r"2\.weight: must be of a floating-point type"):
        nft.convert(model, NVM)


def test_tensors_of_other_classes_are_refused():
    class Special(torch.Tensor):
        pass

    model = network()
    model[0].weight = nn.Parameter(torch.ones(6, 6).as_subclass(Special))
    with pytest.raises(TypeError, match=r"0\.weight: must be a plain tensor: convert before .*fully_shard"):
        nft.convert(model, NVM)


def test_flat_shards_are_refused():
    model = network()
    model[0].weight.data = model[0].weight.data.flatten()
    with pytest.raises(ValueError, match=r"0\.weight: must have 2 dimensions: convert before FSDP"):
        nft.convert(model, NVM)


# ---- layers that no crossbar holds are named


def test_scripted_models_are_refused_and_scripted_parts_named():
    with pytest.raises(TypeError, match="model: must not be scripted or traced: convert first"):
        nft.convert(torch.jit.trace(network(), X), NVM)
    model = nn.Sequential(torch.jit.trace(nn.Linear(6, 6), X), nn.Linear(6, 4))
    with pytest.warns(UserWarning, match=r"digital: 0\.weight \(Linear, 36: scripted\); convert before scripting$"):
        nft.convert(model, NVM)


def test_quantized_layers_are_named():
    class Quantized(nn.Module):
        weight = None

    Quantized.__module__, Quantized.__qualname__ = "torch.ao.nn.quantized.dynamic.modules.linear", "Linear"
    with pytest.warns(UserWarning, match=r"known matrix weights .*digital: 0 \(Quantized: quantized\); convert before"):
        nft.convert(nn.Sequential(Quantized(), nn.Linear(6, 4)), NVM)


def test_layers_in_plain_lists_are_named():
    model = network()
    model[1].inner = {"a": [1], "hidden": nn.Linear(6, 6)}
    with pytest.warns(UserWarning, match=r"digital: 1\.inner\.weight .*in a plain list.* nn\.ModuleDict$"):
        nft.convert(model, NVM)


def test_the_output_matrix_of_attention_is_converted_with_the_attention():
    model = nn.Sequential(nn.Linear(6, 6), nn.MultiheadAttention(6, 1))
    rule = r"include: must match a layer .*; include the attention: 1\.out_proj; got 1\.out"
    with pytest.raises(ValueError, match=rule):
        nft.convert(model, NVM, include="1.out_proj")


def test_a_weight_that_a_module_without_noise_shares_is_named():
    model = nn.ModuleDict({"words": nn.Embedding(5, 6), "out": nn.Linear(6, 5)})
    model["out"].weight = model["words"].weight
    with pytest.warns(UserWarning, match=r"digital modules share .*: out \(with words \(Embedding\)\)$"):
        noisy = nft.convert(model, NVM, include="out")
    assert noisy["out"].weight is noisy["words"].weight
