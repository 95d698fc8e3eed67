"""peft's adapters: the base on crossbars and the adapters digital, or the other way round."""

import pytest
import torch
from torch import nn

import nft_ext as nft

peft = pytest.importorskip("peft", reason="peft is not installed")

NVM = nft.NVMDevice(sigma=0.1)
X = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
ADAPTED = ("query", "value")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.query, self.value, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(torch.relu(self.query(x)) * self.value(x))


def adapted(model):
    torch.manual_seed(1)
    config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=list(ADAPTED), init_lora_weights=False)
    return peft.get_peft_model(model, config)


def noisy_names(model):
    return {name.removeprefix("base_model.model.") for name in nft.noisy_layers(model)}


def by_hand(model, weight_of):
    """The forward in plain torch. weight_of(layer): the weight that its product reads."""
    net = model.base_model.model

    def product(x, layer):
        return nn.functional.linear(x, weight_of(layer), layer.bias)

    def lora(x, layer):
        a, b = layer.lora_A["default"], layer.lora_B["default"]
        return product(x, layer.base_layer) + 2 * product(product(x, a), b)  # lora_alpha / r

    return product(torch.relu(lora(X, net.query)) * lora(X, net.value), net.head)


def chip_of(layer):
    if not isinstance(layer, nft.NoisyLinear):
        return layer.weight
    return nft.program_weights(layer.weight, NVM, seed=3, stream=layer.stream)[0]


@pytest.mark.parametrize(
    "choice, expected",
    [
        ({"exclude": ["*.lora_A.*", "*.lora_B.*"]}, {"query.base_layer", "value.base_layer", "head"}),
        ({"include": "*.base_layer"}, {"query.base_layer", "value.base_layer"}),
        (
            {"include": ["*.lora_A.*", "*.lora_B.*"]},
            {f"{layer}.lora_{part}.default" for layer in ADAPTED for part in "AB"},
        ),
    ],
    ids=["digital adapters", "base layers alone", "adapters on crossbars"],
)
@pytest.mark.parametrize("inplace", [False, True])
def test_patterns_choose_what_is_on_crossbars(choice, expected, inplace):
    model = nft.convert(adapted(Net()), NVM, inplace=inplace, **choice)
    assert noisy_names(model) == expected
    with torch.no_grad(), nft.chips(model, seed=3):
        torch.testing.assert_close(model(X), by_hand(model, chip_of))


def test_adapters_are_trained_under_the_noise_of_the_base():
    model = nft.convert(adapted(Net()), NVM, exclude=["*.lora_A.*", "*.lora_B.*"], inplace=True)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(X).square().sum().backward()
    optimizer.step()
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name in before if "lora_" in name}


def test_adapters_around_a_converted_model_leave_its_chips():
    """Layers keep the names of the first conversion, so a base has the same chips with and without adapters."""
    base = nft.convert(Net(), NVM)
    streams = {name: layer.stream for name, layer in nft.noisy_layers(base).items()}
    model = adapted(base)
    found = nft.noisy_layers(model).values()
    assert [layer.stream for layer in found] == list(streams.values()) and len(found) == 3
    with torch.no_grad(), nft.chips(model, seed=3):
        torch.testing.assert_close(model(X), by_hand(model, chip_of))
        with model.disable_adapter():
            bare = model(X)
    expected = nft.convert(Net(), NVM)
    with torch.no_grad(), nft.chips(expected, seed=3):
        assert torch.equal(bare, expected(X))
