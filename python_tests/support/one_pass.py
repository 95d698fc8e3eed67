"""Products of shapes that take the one-pass kernel on the CPU, beside torch's own in float64."""

import torch
from torch.nn import functional as F

import nft_ext as nft
from support.products import random

NVM = nft.NVMDevice(sigma=0.1)
KEY = nft.noise_key(5, range(3))
STREAM = 11
#      x, weight, stride, padding, dilation, groups
CONVS = {
    "vectors of a row": ((1, 64, 32, 32), (64, 64, 3, 3), (1, 1), (1, 1), (1, 1), 1),
    "vectors of a plane": ((2, 64, 4, 8), (136, 64, 1, 1), (1, 1), (0, 0), (1, 1), 1),
    "panels": ((2, 32, 7, 9), (40, 32, 3, 3), (1, 1), (1, 1), (1, 1), 1),
    "strides": ((1, 64, 16, 16), (72, 64, 3, 3), (2, 2), (1, 1), (1, 1), 1),
    "odd": ((3, 9, 11, 10), (37, 9, 5, 6), (3, 2), (2, 4), (2, 1), 1),
    "groups": ((2, 32, 8, 8), (96, 16, 3, 3), (1, 1), (1, 1), (1, 1), 2),
    "rows beside vectors": ((1, 16, 3, 48), (64, 16, 3, 3), (1, 1), (0, 1), (1, 1), 1),
}
LINEARS = {"one vector": ((16, 256), (48, 256)), "images": ((32, 200), (61, 200)), "tail": ((5, 512), (33, 512))}


def case(name):
    """(noisy product of x, weight, bias and a key, torch's product of x, W_p and bias, x, weight, bias)"""
    if name in LINEARS:
        x, weight = (random(*shape, seed=i) for i, shape in enumerate(LINEARS[name]))
        noisy = lambda x, w, b, key, **o: nft.noisy_linear(x, w, b, nvm=NVM, key=key, stream=STREAM, **o)
        return noisy, F.linear, x, weight, random(len(weight), seed=2)
    x, weight, *how = CONVS[name]
    x, weight = random(*x), random(*weight, seed=1)
    noisy = lambda x, w, b, key, **o: nft.noisy_conv2d(x, w, b, *how, nvm=NVM, key=key, stream=STREAM, **o)
    return noisy, lambda x, w, b: F.conv2d(x, w, b, *how), x, weight, random(len(weight), seed=2)


def expected(plain, x, weight, bias, key, shared):
    """The product in float64 with the chips' weights, and the bound of a float32 sum's error."""
    chips = nft.program_weights(weight, NVM, stream=STREAM, key=key).double()
    parts = [x] * len(chips) if shared else x.chunk(len(chips))
    b = None if bias is None else bias.double()
    y = torch.cat([plain(part.double(), w, b) for part, w in zip(parts, chips)])
    scale = torch.cat(
        [plain(part.double().abs(), w.abs(), None if b is None else b.abs()) for part, w in zip(parts, chips)]
    )
    return y, 4 * 2**-24 * scale * weight[0].numel() ** 0.5
