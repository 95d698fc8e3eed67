"""bfloat16 and float16 weights are read where they lie: results, noise and gradients are those of `weight.float()`, bit
for bit.
"""

import pytest
import torch

import nft_ext as nft
from nft_ext.ops.functional import crossbar

ops = torch.ops.nft_ext
NVM = nft.NVMDevice(sigma=0.1)
PER_DEVICE = nft.NVMDevice(sigma=0.1, sampling="per_device", mapping="differential")
KEY = nft.noise_key(3, range(2))
ROWS, IMAGES = torch.randn(4, 130), torch.randn(4, 6, 9, 9)
narrow = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])


def weight_of(shape, dtype):
    w = torch.randn(shape, generator=torch.Generator().manual_seed(1)).mul(0.05).to(dtype)
    w.view(-1)[:3] = torch.tensor([0.0, -0.0, -1e-7])
    return w


CALLS = {
    "program_weights": lambda w, nvm: nft.program_weights(w, nvm, key=KEY),
    "program_weights to bfloat16": lambda w, nvm: nft.program_weights(w, nvm, key=KEY, dtype=torch.bfloat16),
    "noisy_linear": lambda w, nvm: nft.noisy_linear(ROWS, w, nvm=nvm, key=KEY),
    "noisy_linear, one chip": lambda w, nvm: nft.noisy_linear(ROWS, w, nvm=nvm, key=KEY[:1]),
    "noisy_linear, bfloat16 x": lambda w, nvm: nft.noisy_linear(ROWS.bfloat16(), w, nvm=nvm, key=KEY),
    "noisy_linear, fused": lambda w, nvm: nft.noisy_linear(ROWS, w, nvm=nvm, key=KEY, relu=True),
    "strided": lambda w, nvm: nft.noisy_linear(ROWS[:, ::2], w[:, ::2], nvm=nvm, key=KEY),
    "noisy_conv2d": lambda w, nvm: nft.noisy_conv2d(IMAGES, w.view(-1, 6, 1, 1), nvm=nvm, key=KEY),
    "noisy_conv2d, fused": lambda w, nvm: nft.noisy_conv2d(IMAGES, w.view(-1, 6, 1, 1), nvm=nvm, key=KEY, relu=True),
    "program_many": lambda w, nvm: program_many(w, nvm),
    "weight_step": lambda w, nvm: ops.weight_step(w, 8),
    "weight_step_many": lambda w, nvm: ops.weight_step_many([w, w[1:]], [8, 4]),
    "quantize": lambda w, nvm: ops.quantize(w, ops.weight_step(w, 8), 8),
}


def program_many(w, nvm):
    bars = [crossbar(part, nvm, KEY, stream) for stream, part in enumerate((w, w[:7]))]
    spec = [number for bar in bars for number in bar.spec]
    tables = [bar.table for bar in bars]
    many = ops.program_many([bar.weight for bar in bars], [None] * 2, [], tables, KEY, [0, 1], spec, [], torch.float32)
    return torch.cat([part.flatten() for part in many])


@narrow
@pytest.mark.parametrize("nvm", [NVM, PER_DEVICE], ids=["fast", "per_device"])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@torch.no_grad()
def test_every_operator_gives_the_results_of_the_float32_values(call, nvm, dtype):
    w = weight_of((300, 130), dtype)
    expected = call(w.float(), nvm)
    for _ in range(4):  # from the third call on, the step comes from the cache of max|W|
        found = call(w, nvm)
        assert found.dtype == expected.dtype and torch.equal(found, expected)


@torch.no_grad()
def test_the_same_memory_as_another_type_is_another_weight():
    memory = weight_of((64, 130), torch.bfloat16)
    for _ in range(4):
        for dtype in (torch.bfloat16, torch.float16):
            w = memory.view(dtype)
            assert torch.equal(nft.program_weights(w, NVM, key=KEY), nft.program_weights(w.float(), NVM, key=KEY))


@narrow
@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
def test_weights_that_are_not_finite_are_refused(bad, dtype):
    w = weight_of((64, 130), dtype)
    for _ in range(4):
        nft.program_weights(w, NVM, key=KEY)
    w[5, 7] = bad
    with pytest.raises(RuntimeError, match="weight: must be finite"):
        nft.program_weights(w, NVM, key=KEY)


@narrow
@pytest.mark.parametrize("call", list(CALLS.values())[:8], ids=list(CALLS)[:8])
def test_gradients_are_those_of_the_float32_values_rounded_to_the_weights_type(call, dtype):
    narrow, through = (weight_of((300, 130), dtype).requires_grad_() for _ in range(2))
    if call is CALLS["noisy_linear, fused"]:
        with pytest.raises(RuntimeError, match="must not require a gradient"):
            call(narrow, NVM)
        return
    call(narrow, NVM).square().sum().backward()
    call(through.float(), NVM).square().sum().backward()  # torch casts the gradient
    assert narrow.grad.dtype == dtype and torch.equal(narrow.grad, through.grad)


def net(fused):
    torch.manual_seed(2)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3),
        torch.nn.ReLU(),
        torch.nn.Conv2d(16, 16, 3),
        torch.nn.Flatten(),
        torch.nn.Linear(64, 5),
    )
    model = nft.convert(model, NVM).eval()
    return nft.fuse(model) if fused else model


@narrow
@pytest.mark.parametrize("fused", [False, True])
@torch.no_grad()
def test_layers_read_narrow_weights_without_a_copy_in_float32(fused, dtype):
    """Weights alone are narrow here: x and biases stay float32."""
    x = torch.randn(2, 3, 6, 6)
    model, wide = net(fused), net(fused)
    for layer, twin in zip(nft.noisy_layers(model).values(), nft.noisy_layers(wide).values()):
        layer.weight.data = layer.weight.to(dtype)
        twin.weight.data = layer.weight.float()
        assert layer.crossbar().weight.dtype == dtype
    for programmed in (False, True):
        with nft.chips(model, draws=range(2), programmed=programmed):
            found = model(x)
        with nft.chips(wide, draws=range(2), programmed=programmed):
            assert torch.equal(found, wide(x))
