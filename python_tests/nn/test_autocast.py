"""Autocast: x is cast, weights and tables stay float32, and the programmed weight is rounded to x's dtype."""

import pytest
import torch
from torch import nn

import nft_ext as nft

NVM = nft.NVMDevice(sigma=0.1)
LAYERS = {
    "linear": lambda: (nft.NoisyLinear(6, 3, nvm=NVM), torch.randn(4, 6)),
    "conv": lambda: (nft.NoisyConv2d(4, 6, 3, padding="same", nvm=NVM), torch.randn(2, 4, 5, 6)),
}


@pytest.fixture(params=LAYERS)
def layer_and_input(request):
    torch.manual_seed(0)
    return LAYERS[request.param]()


def test_the_result_is_that_of_a_bfloat16_input(layer_and_input):
    layer, x = layer_and_input
    with nft.chips(layer):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = layer(x)
        assert y.dtype == torch.bfloat16
        assert torch.equal(y, layer(x.bfloat16()))


def test_gradients_arrive_in_their_leaves_dtype(layer_and_input):
    layer, x = layer_and_input
    grads = []
    for autocast in (True, False):
        layer.zero_grad()
        leaf = x.clone().requires_grad_()
        with nft.chips(layer):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                y = layer(leaf if autocast else leaf.bfloat16())
            y.float().square().sum().backward()
        grads.append([leaf.grad, layer.weight.grad, layer.bias.grad])
    for mixed, low in zip(*grads):
        assert mixed.dtype == torch.float32
        assert torch.equal(mixed, low)


def test_the_noise_is_the_same_chip_rounded():
    """x = identity reads the weights back: those of float32, rounded to nearest even, not a chip drawn in low
    precision.
    """
    layer = nft.NoisyLinear(6, 3, bias=False, nvm=NVM)
    with nft.chips(layer, seed=1, draws=[4]):
        full = layer(torch.eye(6))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(layer(torch.eye(6)), full.bfloat16())


def test_a_region_without_autocast_is_float32(layer_and_input):
    layer, x = layer_and_input
    with nft.chips(layer), torch.autocast("cpu", dtype=torch.bfloat16):
        with torch.autocast("cpu", enabled=False):
            inside = layer(x)
    with nft.chips(layer):
        assert torch.equal(inside, layer(x))


def test_the_functions_follow_autocast():
    x, weight = torch.randn(4, 6), torch.randn(3, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = nft.noisy_linear(x, weight, nvm=NVM, key=nft.noise_key(0))
    assert torch.equal(y, nft.noisy_linear(x.bfloat16(), weight, nvm=NVM, key=nft.noise_key(0)))


def test_a_compiled_model_follows_autocast():
    model = nft.convert(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 5)), NVM)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 3, 5, 5)
    with nft.chips(model), torch.autocast("cpu", dtype=torch.bfloat16):
        y = compiled(x)
        assert y.dtype == torch.bfloat16
        assert torch.equal(y, model(x))


def test_autocast_to_float16_is_refused_on_the_cpu(layer_and_input):
    layer, x = layer_and_input
    with (
        torch.autocast("cpu", dtype=torch.float16),
        pytest.raises(TypeError, match="x: must be float32 or bfloat16 on the CPU"),
    ):
        layer(x)
