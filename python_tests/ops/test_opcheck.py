"""torch.library.opcheck on every operator: schema, autograd registration, fake kernels (with real strides), and AOT
dispatch.
"""

import pytest
import torch
from torch.library import opcheck

import nft_ext as nft

ops = torch.ops.nft_ext
NVM = nft.NVMDevice(sigma=0.1)
PER_DEVICE = nft.NVMDevice(sigma=0.1, sampling="per_device")
CHIPS = [(1, True), (2, True), (2, False)]  # (chips, shared)
WANTED = [1, 2, 4, 7]  # gradients of x, weight, bias, all three


def bar(weight, chips, nvm=NVM, cached=False):
    """Operator arguments from codes to device."""
    step = ops.weight_step(weight.detach(), nvm.weight_bits)
    codes = ops.quantize(weight.detach(), step, nvm.weight_bits) if cached else None
    return codes, step, torch.from_numpy(nvm.operator_table()), nft.noise_key(0, range(chips)), 5, nvm.operator_spec()


IMAGES = {
    "contiguous": lambda: torch.randn(4, 4, 5, 6),
    "channels_last": lambda: torch.randn(4, 4, 5, 6).to(memory_format=torch.channels_last),
    "sliced": lambda: torch.randn(8, 4, 5, 12)[::2, :, :, ::2],
    "one pixel": lambda: torch.randn(4, 4, 1, 1).to(memory_format=torch.channels_last),
    "one column, channels_last": lambda: torch.randn(4, 4, 5, 1).to(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("needs_grad", [False, True])
@pytest.mark.parametrize("nvm", [NVM, PER_DEVICE], ids=["fast", "per_device"])
@pytest.mark.parametrize("cached", [False, True])
def test_program(cached, nvm, needs_grad):
    weight = torch.randn(3, 4).requires_grad_(needs_grad)
    opcheck(ops.program.default, (weight, *bar(weight, 2, nvm, cached), torch.bfloat16))


@pytest.mark.parametrize(
    "rows, chips, shared, dtype, needs_grad",
    [
        *[(rows, *chips, torch.float32, True) for rows in (4, 0) for chips in CHIPS],
        (4, 2, True, torch.float32, False),
        (4, 2, True, torch.bfloat16, True),
    ],
)
def test_noisy_linear(rows, chips, shared, dtype, needs_grad):
    x, weight, bias = torch.randn(6, rows, dtype=dtype).t(), torch.randn(3, 6), torch.randn(3)
    for leaf in (x, weight, bias):
        leaf.requires_grad_(needs_grad)
    opcheck(ops.noisy_linear.default, (x, weight, bias, *bar(weight, chips), shared))


@pytest.mark.parametrize(
    "layout, chips, shared, needs_grad",
    [
        *[(layout, 2, True, needs_grad) for layout in IMAGES for needs_grad in (False, True)],
        ("contiguous", 1, True, True),
        ("channels_last", 2, False, True),
    ],
)
def test_noisy_conv2d(layout, chips, shared, needs_grad):
    x, weight, bias = IMAGES[layout](), torch.randn(6, 2, 3, 3), torch.randn(6)
    for leaf in (x, weight, bias):
        leaf.requires_grad_(needs_grad)
    opcheck(ops.noisy_conv2d.default, (x, weight, bias, *bar(weight, chips), [1, 2], [1, 2], [1, 1], 2, shared))


@pytest.mark.parametrize(
    "chips, shared, wanted", [*[(2, True, wanted) for wanted in WANTED], (1, True, 7), (2, False, 7)]
)
def test_noisy_linear_backward(chips, shared, wanted):
    x, weight = torch.randn(6, 4).t(), torch.randn(3, 6)
    args = (x, weight, *bar(weight, chips), shared)
    grad = torch.randn(3, 4 * chips if shared else 4).t()
    opcheck(ops.noisy_linear_backward.default, (grad, *args, wanted))


@pytest.mark.parametrize(
    "layout, chips, shared, wanted",
    [
        *[(layout, 2, True, wanted) for layout in IMAGES for wanted in WANTED],
        ("contiguous", 1, True, 7),
        ("channels_last", 2, False, 7),
    ],
)
def test_noisy_conv2d_backward(layout, chips, shared, wanted):
    x, weight = IMAGES[layout](), torch.randn(6, 2, 3, 3)
    noise, geometry = bar(weight, chips), ([1, 2], [1, 2], [1, 1], 2)
    grad = torch.randn_like(ops.noisy_conv2d(x, weight, None, *noise, *geometry, shared))
    opcheck(ops.noisy_conv2d_backward.default, (grad, x, weight, *noise, *geometry, shared, wanted))


@pytest.mark.parametrize("needs_grad", [False, True])
@pytest.mark.parametrize("bits", [8, 16])
def test_weight_step_and_quantize(bits, needs_grad):
    weight = torch.randn(4, 3).t().requires_grad_(needs_grad)
    opcheck(ops.weight_step.default, (weight, bits))
    opcheck(ops.quantize.default, (weight, ops.weight_step(weight.detach(), bits), bits))


def test_bfloat16_weights():
    weight = torch.randn(3, 6, dtype=torch.bfloat16)
    leaf = weight.clone().requires_grad_()
    opcheck(ops.program.default, (leaf, *bar(weight, 2), torch.float32))
    opcheck(ops.noisy_linear.default, (torch.randn(4, 6), leaf, None, *bar(weight, 2), True))
    opcheck(ops.noisy_linear_backward.default, (torch.randn(8, 3), torch.randn(4, 6), weight, *bar(weight, 2), True, 7))
    opcheck(ops.weight_step.default, (weight, 8))
    opcheck(ops.quantize.default, (weight, ops.weight_step(weight, 8), 8))


@pytest.mark.parametrize("needs_grad", [False, True])
def test_draw_key(needs_grad):
    opcheck(ops.draw_key.default, (torch.randn(3, 4).requires_grad_(needs_grad),))


# ---- vmap


def test_vmap_over_keys_is_one_call_a_key():
    weight = torch.randn(3, 4)
    keys = torch.stack([nft.noise_key(seed, range(2)) for seed in range(3)])  # [3, 2, 2]
    batched = torch.vmap(lambda key: nft.program_weights(weight, NVM, key=key))(keys)
    assert torch.equal(batched, torch.stack([nft.program_weights(weight, NVM, key=key) for key in keys]))
    swapped = torch.vmap(lambda key: nft.program_weights(weight, NVM, key=key), in_dims=1, out_dims=1)(
        keys.transpose(0, 1)
    )
    assert torch.equal(swapped, batched.transpose(0, 1))


def test_gradients_per_key():
    weight, scale = torch.randn(3, 4), torch.tensor([1.0, 2.0, 3.0])
    keys = torch.stack([nft.noise_key(seed) for seed in range(3)])

    def loss(weight, key, scale):
        return (scale * nft.program_weights(weight, NVM, key=key)).sum()

    grads = torch.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(weight, keys, scale)
    assert torch.equal(grads, scale[:, None, None].expand(3, 3, 4))


def test_vmap_over_weights_is_one_call_per_weight():
    weights, keys = torch.randn(3, 4, 5), torch.stack([nft.noise_key(seed, range(2)) for seed in range(3)])
    same_key = torch.vmap(lambda weight: nft.program_weights(weight, NVM, key=keys[0]), in_dims=2)(
        weights.movedim(0, 2)
    )
    assert torch.equal(same_key, torch.stack([nft.program_weights(weight, NVM, key=keys[0]) for weight in weights]))
    own_keys = torch.vmap(lambda weight, key: nft.program_weights(weight, NVM, key=key))(weights, keys)
    expected = [nft.program_weights(weight, NVM, key=key) for weight, key in zip(weights, keys)]
    assert torch.equal(own_keys, torch.stack(expected))
