"""Which memory format a result has: torch's own convolutions' choice, also where both formats are the same memory, and
the fake kernels'.
"""

import itertools

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

import nft_ext as nft
from nft_ext.ops.operators import _channels_last, can_be_channels_last

NVM = nft.NVMDevice(sigma=0.1)
SHAPES = list(itertools.product((1, 2), (1, 3), (1, 4), (1, 5)))
LAYOUTS = {
    "contiguous": lambda x: x,
    "channels last": lambda x: torch.empty_like(x, memory_format=torch.channels_last).copy_(x),
    "width before height": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "from [N, H, W, C]": lambda x: x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
    "expanded": lambda x: x[:1].expand(2, *x.shape[1:]),
    "expanded channels": lambda x: x[:, :1].expand(len(x), 3, *x.shape[2:]),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_strides_are_those_of_torchs_convolution(shape, layout):
    x = LAYOUTS[layout](torch.randn(shape))
    weight = torch.randn(4, x.shape[1], 1, 1)
    y = nft.noisy_conv2d(x, weight, nvm=NVM, key=nft.noise_key(1))
    assert y.stride() == F.conv2d(x, weight).stride()
    said = torch.channels_last if _channels_last(x) else torch.contiguous_format
    assert y.stride() == torch.empty(y.shape, memory_format=said).stride()
    plain = nft.noisy_conv2d(x.contiguous(), weight, nvm=NVM, key=nft.noise_key(1))
    torch.testing.assert_close(
        y.contiguous(), plain, rtol=1e-5, atol=1e-5
    )  # by processor, the library adds up in another order


def test_weights_with_several_steps_are_never_stored_channels_last():
    """The rule of csrc/cuda/torch/operands.h: the kernel for channels last knows one step."""
    with FakeTensorMode():
        weight = torch.empty(8, 4, 3, 3, device="cuda")
    scales = {"layer": {}, "output": dict(scale="output"), "tile": dict(scale="tile", array_rows=7)}
    stored = {
        name: can_be_channels_last(weight, nft.NVMDevice(**fields).operator_spec()) for name, fields in scales.items()
    }
    assert stored == {"layer": True, "output": False, "tile": False}
