"""NoisyConv2d and NoisyLinear are drop-in: with the noise off they are the plain layers with quantized weights."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import nft_ext as nft

NVM = nft.NVMDevice(sigma=0.1)
CONVS = {
    "plain": dict(),
    "no bias": dict(bias=False),
    "stride, dilation": dict(stride=(2, 1), padding=(1, 2), dilation=(1, 2)),
    "same": dict(padding="same"),
    "valid": dict(padding="valid"),
    "depthwise": dict(groups=4, padding=1),
    "reflect": dict(padding=1, padding_mode="reflect"),
    "replicate": dict(padding=(2, 1), padding_mode="replicate", stride=2),
    "circular": dict(padding=2, padding_mode="circular"),
    "circular same": dict(padding="same", padding_mode="circular"),
}
LINEAR_SHAPES = [(6,), (5, 6), (2, 5, 6), (2, 1, 3, 6)]


def quantized_twin(plain_class, layer, *args, **options):
    """The plain layer whose weight is the quantized weight W_d of `layer`."""
    twin = plain_class(*args, **options)
    twin.load_state_dict(layer.state_dict())
    with torch.no_grad():
        twin.weight.copy_(nft.program_weights(layer.weight, layer.nvm, enabled=False)[0])
    return twin


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("case", CONVS)
def test_conv_without_noise_is_the_plain_layer_with_quantized_weights(case, batched):
    layer = nft.NoisyConv2d(4, 8, 3, nvm=NVM, **CONVS[case])
    twin = quantized_twin(nn.Conv2d, layer, 4, 8, 3, **CONVS[case])
    x = torch.randn(*([2] if batched else []), 4, 9, 7)
    with nft.noise(layer, enabled=False):
        torch.testing.assert_close(
            layer(x), twin(x), rtol=1e-5, atol=1e-5
        )  # its own product, in another order than torch's


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", LINEAR_SHAPES)
def test_linear_without_noise_is_the_plain_layer_with_quantized_weights(shape, bias):
    layer = nft.NoisyLinear(6, 3, bias=bias, nvm=NVM)
    twin = quantized_twin(nn.Linear, layer, 6, 3, bias=bias)
    x = torch.randn(shape)
    with nft.noise(layer, enabled=False):
        y = layer(x)
    assert y.shape == twin(x).shape
    torch.testing.assert_close(y, twin(x))


@pytest.mark.parametrize("mode", ["zeros", "reflect", "circular", "replicate"])
def test_padding_modes_pad_the_input_not_the_noise(mode):
    layer = nft.NoisyConv2d(4, 8, 3, padding=2, padding_mode=mode, nvm=NVM)
    x = torch.randn(2, 4, 7, 6)
    with nft.chips(layer, seed=2, draws=[5]):
        y = layer(x)
    weight = nft.program_weights(layer.weight, NVM, seed=2, stream=layer.stream, draws=5)[0]
    padded = F.pad(x, (2, 2, 2, 2), mode="constant" if mode == "zeros" else mode)
    torch.testing.assert_close(y, F.conv2d(padded, weight, layer.bias))


# ---- what a module is


def test_they_are_the_plain_classes():
    conv, linear = nft.NoisyConv2d(4, 8, 3, nvm=NVM), nft.NoisyLinear(6, 3, nvm=NVM)
    assert isinstance(conv, nn.Conv2d) and isinstance(linear, nn.Linear)
    assert list(conv.state_dict()) == list(linear.state_dict()) == ["weight", "bias"]
    assert [name for name, _ in linear.named_parameters()] == ["weight", "bias"]


def test_plain_checkpoints_load_both_ways():
    plain, noisy = nn.Conv2d(4, 8, 3), nft.NoisyConv2d(4, 8, 3, nvm=NVM)
    noisy.load_state_dict(plain.state_dict(), strict=True)
    assert torch.equal(noisy.weight, plain.weight)
    nn.Conv2d(4, 8, 3).load_state_dict(noisy.state_dict(), strict=True)


def test_repr_names_the_settings_and_the_device():
    text = repr(nft.NoisyConv2d(4, 8, 3, stride=2, bias=False, nvm=NVM))
    assert text.startswith("NoisyConv2d(4, 8, kernel_size=(3, 3), stride=(2, 2), bias=False, nvm=(")
    assert "sigma 0.1 relative to max, M 8, K 2" in text
    assert "in_features=6, out_features=3, bias=True, nvm=(" in repr(nft.NoisyLinear(6, 3, nvm=NVM))


def roundtrip_pickle(layer):
    return pickle.loads(pickle.dumps(layer))


def roundtrip_torch(layer):
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, roundtrip_pickle, roundtrip_torch])
def test_copies_are_the_same_chip_and_independent(duplicate):
    layer, x = nft.NoisyLinear(6, 3, nvm=NVM), torch.randn(4, 6)
    with torch.no_grad():
        layer(x)  # the copy must not take the cached codes along
        twin = duplicate(layer)
        with nft.chips(layer, seed=1), nft.chips(twin, seed=1):
            assert torch.equal(layer(x), twin(x))
        twin.weight.mul_(-1)
        twin.bias.mul_(-1)
        with nft.chips(layer, seed=1), nft.chips(twin, seed=1):
            assert torch.equal(layer(x), -twin(x))


def test_bfloat16_layers_keep_float32_tables_and_the_same_chips():
    layer = nft.NoisyLinear(6, 3, bias=False, nvm=NVM).to(torch.bfloat16)
    with nft.chips(layer, seed=1):
        read_back = layer(torch.eye(6, dtype=torch.bfloat16))
    chip = nft.program_weights(layer.weight.float(), NVM, seed=1, stream=layer.stream)[0]
    assert read_back.dtype == torch.bfloat16
    assert torch.equal(read_back.t(), chip.bfloat16())
    layer(torch.randn(4, 6, dtype=torch.bfloat16)).sum().backward()
    assert layer.weight.grad.dtype == torch.bfloat16


@pytest.mark.parametrize(
    "make",
    [lambda: nft.NoisyConv2d(4, 8, 3, nvm=NVM).to("meta"), lambda: nft.NoisyConv2d(4, 8, 3, nvm=NVM, device="meta")],
    ids=["moved", "made"],
)
def test_meta_layers_give_shapes_and_come_back(make):
    layer = make()
    y = layer(torch.empty(2, 4, 6, 6, device="meta"))
    assert y.device.type == "meta" and y.shape == (2, 8, 4, 4)
    layer = layer.to_empty(device="cpu")
    layer.reset_parameters()
    with nft.chips(layer):
        chip = nft.program_weights(layer.weight, NVM, stream=layer.stream)[0]
        x = torch.randn(2, 4, 6, 6)
        torch.testing.assert_close(layer(x), F.conv2d(x, chip, layer.bias))


def test_channels_last_models_compute_the_same_chips():
    layer, x = nft.NoisyConv2d(4, 8, 3, nvm=NVM), torch.randn(2, 4, 6, 6)
    with nft.chips(layer):
        y = layer(x)
    layer = layer.to(memory_format=torch.channels_last)
    with nft.chips(layer):
        z = layer(x.to(memory_format=torch.channels_last))
    assert z.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, z)


# ---- randomness


def test_manual_seed_reproduces_and_every_forward_is_a_fresh_chip():
    model = nft.convert(nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3)), NVM)
    x = torch.randn(4, 6)
    torch.manual_seed(5)
    first, second = model(x), model(x)
    torch.manual_seed(5)
    assert torch.equal(model(x), first)
    assert torch.equal(model(x), second)
    assert not torch.equal(first, second)


def test_training_forwards_never_meet_an_evaluated_chip():
    """The key of a fresh chip lies in the training domain, whatever the seed."""
    from nft_ext.ops.keys import DOMAINS, fresh_key

    seed, draw = fresh_key(torch.zeros(1))[0].tolist()
    assert draw >> 32 == DOMAINS["training"] != DOMAINS["evaluation"]
    assert 0 <= seed < 2**63


@pytest.mark.parametrize("training", [True, False])
def test_train_and_eval_do_not_touch_the_noise(training):
    layer, x = nft.NoisyLinear(6, 3, nvm=NVM).train(training), torch.randn(4, 6)
    assert not torch.equal(layer(x), layer(x))
    with nft.noise(layer, enabled=False):
        assert torch.equal(layer(x), layer(x))
