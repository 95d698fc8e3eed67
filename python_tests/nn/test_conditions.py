"""Layers under other conditions: another device, noise off, no quantizer. Nothing of it stays."""

import copy

import pytest
import torch
from torch import nn

import nft_ext as nft
from nft_ext.nn.conditions import Condition, under

NVM = nft.NVMDevice(weight_bits=4, sigma=0.2)


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 6)
    ).eval()


@pytest.fixture
def plain():
    return network()


@pytest.fixture
def noisy(plain):
    return nft.convert(plain, NVM)


X = torch.randn(5, 2, 4, 4, generator=torch.Generator().manual_seed(1))


def all_under(model, condition):
    return under(model, dict.fromkeys(nft.noisy_layers(model).values(), condition))


@torch.no_grad()
def on_chips(model, draws, **options):
    with nft.chips(model, seed=3, draws=draws, **options):
        return model(X)


def state(model):
    layers = nft.noisy_layers(model).values()
    return [(layer.noise_state(), layer.nvm, sorted(layer.__dict__), layer._owner) for layer in layers]


def same_state(a, b):
    def same(x, y):
        return x is y or (isinstance(x, torch.Tensor) and x.equal(y)) or (not isinstance(x, torch.Tensor) and x == y)

    pairs = zip(a, b, strict=True)
    return all(one[1:] == other[1:] and all(map(same, one[0], other[0])) for one, other in pairs)


@pytest.mark.parametrize("programmed", [False, True])
def test_without_noise_and_quantizer_the_network_is_the_plain_one_bit_for_bit(plain, noisy, programmed):
    with all_under(noisy, Condition(NVM, noisy=False, quantized=False)):
        y = on_chips(noisy, [2], programmed=programmed)
        several = on_chips(noisy, range(3), programmed=programmed)
    with torch.no_grad():
        assert y.equal(plain(X))
        torch.testing.assert_close(several, plain(X).repeat(3, 1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("device", [NVM, NVM.replace(stuck=(0.1, 0.1)), NVM.replace(mapping="differential")], ids=str)
def test_without_the_quantizer_a_weight_is_the_float_weight_with_its_devices_deviation(plain, noisy, device):
    with all_under(noisy, Condition(device, quantized=False)):
        y = on_chips(noisy, range(3)).unflatten(0, (3, len(X)))
    streams = {name: layer.stream for name, layer in nft.noisy_layers(noisy).items()}
    for draw in range(3):
        expected = copy.deepcopy(plain)
        for name, stream in streams.items():
            weight = expected.get_submodule(name).weight
            chip = dict(stream=stream, key=nft.noise_key(3, draw))
            deviation = nft.program_weights(weight, device, **chip) - nft.program_weights(
                weight, device, **chip, enabled=False
            )
            weight.data += deviation[0].detach()
        with torch.no_grad():
            torch.testing.assert_close(y[draw], expected(X), rtol=1e-5, atol=1e-5)


def test_another_device_gives_the_chips_of_a_network_on_that_device(plain, noisy):
    other = nft.NVMDevice.preset("fefet2", sigma=0.3)
    with all_under(noisy, Condition(other)):
        assert all(layer.nvm == other for layer in nft.noisy_layers(noisy).values())
        y = on_chips(noisy, range(3))
    assert y.equal(on_chips(nft.convert(plain, other), range(3)))


def test_conditions_hold_for_one_layer_alone(plain, noisy):
    layers = nft.noisy_layers(noisy)
    with under(noisy, {layers["0"]: Condition(NVM, noisy=False)}):
        y = on_chips(noisy, range(2))
    quiet = nft.convert(plain, NVM)
    with nft.noise(quiet[0], enabled=False):
        assert y.equal(on_chips(quiet, range(2)))


def test_a_fused_network_has_no_quantizer_either(plain, noisy):
    fused = nft.fuse(noisy)
    for model in (noisy, fused):
        with all_under(model, Condition(NVM, noisy=False, quantized=False)), torch.no_grad():
            torch.testing.assert_close(on_chips(model, range(2)), plain(X).repeat(2, 1), rtol=1e-4, atol=1e-5)
    with all_under(noisy, Condition(NVM, quantized=False)):
        expected = on_chips(noisy, range(2))
    with all_under(fused, Condition(NVM, quantized=False)):
        torch.testing.assert_close(on_chips(fused, range(2)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types_of_weights_and_autocast(dtype):
    plain = network()
    noisy = nft.convert(plain, NVM).to(dtype)
    x, floats = X.to(dtype), plain.to(dtype)
    with all_under(noisy, Condition(NVM, noisy=False, quantized=False)), torch.no_grad():
        with nft.chips(noisy, draws=0):
            y = noisy(x)
        assert y.dtype == dtype
        torch.testing.assert_close(y, floats(x), rtol=1e-2 if dtype == torch.bfloat16 else 1e-6, atol=1e-6)


def test_under_autocast_the_sum_is_rounded_once(plain, noisy):
    with all_under(noisy, Condition(NVM, noisy=False, quantized=False)), torch.autocast("cpu", torch.bfloat16):
        y = on_chips(noisy, [0])
        with torch.no_grad():
            assert y.equal(plain(X))


def test_a_forward_that_would_quantize_is_refused(noisy):
    with all_under(noisy, Condition(NVM, quantized=False)), nft.chips(noisy, draws=0):
        with pytest.raises(RuntimeError, match="^0: must run without gradients"):
            noisy(X)


@pytest.mark.parametrize("quantized", [True, False])
def test_nothing_stays_also_after_an_error(noisy, quantized):
    other = nft.NVMDevice.preset("fefet2", sigma=0.3)
    chip = on_chips(noisy, [4])
    before, buffers = state(noisy), copy.deepcopy(noisy.state_dict())
    with all_under(noisy, Condition(other, quantized=quantized)):
        on_chips(noisy, range(2))
    assert same_state(before, state(noisy))
    with pytest.raises(ZeroDivisionError), all_under(noisy, Condition(other, quantized=quantized)):
        on_chips(noisy, range(2))
        1 / 0
    assert same_state(before, state(noisy))
    assert all(value.equal(noisy.state_dict()[name]) for name, value in buffers.items())
    assert on_chips(noisy, [4]).equal(chip)


def test_a_context_around_keeps_its_sigma_afterwards(noisy):
    with nft.noise(noisy, sigma=0.4):
        chip = on_chips(noisy, [4])
        with all_under(noisy, Condition(NVM, noisy=False)):
            assert not on_chips(noisy, [4]).equal(chip)
        assert on_chips(noisy, [4]).equal(chip)
