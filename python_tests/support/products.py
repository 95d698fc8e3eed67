"""Noisy products beside their definitions: devices, shapes, layouts, and how far the two may differ."""

import torch

import nft_ext as nft
from nft_ext import reference

STREAM = 7
DTYPES = [torch.float32, torch.bfloat16]
# (chips, shared)
CHIPS = [(1, True), (3, True), (3, False)]
DEVICES = {
    "gaussian": nft.NVMDevice(sigma=0.1),
    "preset": nft.NVMDevice.preset("rram4", sigma=0.1),
    "own": nft.NVMDevice(weight_bits=6, device_bits=3, sigma=0.05, relative_to="own"),
    "per_device": nft.NVMDevice(sigma=0.1, sampling="per_device"),
    "limits": nft.NVMDevice(sigma=0.1, clip=(0.0, 1.0), stuck=(0.05, 0.02)),
    "differential": nft.NVMDevice(sigma=0.1, mapping="differential", censor=1.0),
    "16 bits": nft.NVMDevice(weight_bits=16, device_bits=4, sigma=0.05),
}
NVM = DEVICES["gaussian"]


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def noise_of(nvm, key):
    """What the reference's functions take after the bias: table, key, stream, device."""
    return torch.from_numpy(nvm.operator_table()), key, STREAM, nvm.operator_spec()


def with_gradients(function, x, weight, bias):
    """[y, dL/dx, dL/dW, dL/db] in float64, for L = sum(y * fixed random numbers)."""
    leaves = [None if t is None else t.detach().requires_grad_() for t in (x, weight, bias)]
    y = function(*leaves)
    y.backward(random(*y.shape, seed=9, dtype=y.dtype))
    assert y.dtype == x.dtype
    for leaf in leaves:
        assert leaf is None or (leaf.grad.dtype == leaf.dtype and leaf.grad.shape == leaf.shape)
    return [y.detach().double(), *[leaf.grad.double() for leaf in leaves if leaf is not None]]


def assert_as_good_as_reference(operator, definition, x, weight, bias):
    """|operator - exact| <= 3 |reference in x's dtype - exact| + 4 units in the last place of the largest element."""
    exact = with_gradients(definition, x.double(), weight, bias)
    own = with_gradients(definition, x, weight, bias)
    ulp = torch.finfo(x.dtype).eps
    for name, y, low, truth in zip(
        ("y", "dL/dx", "dL/dW", "dL/db"), with_gradients(operator, x, weight, bias), own, exact
    ):
        assert y.shape == truth.shape, name
        allowed = 3 * (low - truth).abs().max() + 4 * ulp * truth.abs().max()
        assert (y - truth).abs().max() <= allowed, name


GEOMETRIES = {
    "plain": dict(),
    "padded": dict(padding=1),
    "stride": dict(stride=2, padding=1),
    "rectangle": dict(stride=(1, 2), padding=(0, 2), dilation=(2, 1)),
    "valid": dict(padding="valid"),
    "same": dict(padding="same"),
    "same, dilated": dict(padding="same", dilation=2),
    "same, even kernel": dict(padding="same", kernel=(2, 4)),
    "1x1": dict(kernel=(1, 1)),
    "groups": dict(groups=2, padding=1),
    "depthwise": dict(groups=6, padding=1),
    "depthwise, stride, dilated": dict(groups=6, stride=2, dilation=2, padding=2),
}


def convolution(kernel=(3, 3), groups=1, **geometry):
    """(weight [4 or 12, 6 / groups, *kernel], keyword arguments of conv2d)."""
    weight = random(12 if groups == 6 else 4, 6 // groups, *kernel)
    return weight, dict(stride=1, padding=0, dilation=1, groups=groups) | geometry


def conv_pair(key, shared, options):
    """(operator, definition) as functions of x, weight, bias."""
    return (
        lambda x, w, b: nft.noisy_conv2d(x, w, b, nvm=NVM, key=key, stream=STREAM, shared=shared, **options),
        lambda x, w, b: reference.noisy_conv2d(x, w, b, *noise_of(NVM, key), **options, shared=shared),
    )


LAYOUTS = {
    "contiguous": lambda dtype: random(3, 6, 9, 7, seed=2, dtype=dtype),
    "channels_last": lambda dtype: random(3, 6, 9, 7, seed=2, dtype=dtype).to(memory_format=torch.channels_last),
    "transposed": lambda dtype: random(3, 6, 7, 9, seed=2, dtype=dtype).transpose(2, 3),
    "sliced": lambda dtype: random(6, 12, 9, 14, seed=2, dtype=dtype)[::2, ::2, :, ::2],
    "channels_last, every third row": lambda dtype: random(9, 6, 9, 7, dtype=dtype).to(
        memory_format=torch.channels_last
    )[::3],
    "expanded": lambda dtype: random(1, 6, 9, 1, seed=2, dtype=dtype).expand(3, 6, 9, 7),
}
