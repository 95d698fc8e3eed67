"""Products with epilogues beside their definitions, and the epilogue alone."""

import itertools

import torch

import nft_ext as nft
from nft_ext import reference
from support.products import NVM, STREAM, random

# x, weight, stride, padding, dilation, groups. On the CPU weights from 8192 on take the one-pass product.
CONVS = {
    "one pass, panels": ((2, 32, 7, 9), (40, 32, 3, 3), (1, 1), (1, 1), (1, 1), 1),
    "one pass, pixels": ((1, 64, 8, 8), (72, 64, 3, 3), (1, 1), (1, 1), (1, 1), 1),
    "one pass, strides and groups": ((2, 32, 9, 8), (96, 16, 3, 3), (2, 1), (1, 0), (1, 2), 2),
    "library": ((2, 4, 5, 6), (6, 2, 3, 3), (1, 2), (1, 2), (1, 1), 2),
    "one pass, past the bound": ((9, 16, 8, 8), (32, 16, 3, 3), (1, 1), (1, 1), (1, 1), 1),
    "library, many images": ((5, 16, 17, 16), (24, 16, 1, 1), (1, 1), (0, 0), (1, 1), 1),
}
LINEARS = {"one pass": ((5, 300), (33, 300)), "one pass, images": ((16, 256), (48, 256)), "library": ((4, 7), (5, 7))}
PARTS = ("scale", "shift", "residual", "relu")
SUBSETS = [subset for n in range(1, 5) for subset in itertools.combinations(PARTS, n)]


def laid_out(x, layout):
    if layout == "channels last":
        return x.contiguous(memory_format=torch.channels_last)
    return torch.stack([x, -x], -1)[..., 0] if layout == "strided" else x


def case(name, dtype=torch.float32, layout="contiguous", chips=1, shared=True, device="cpu"):
    """(the public function of keywords on `device`, the reference of x and the epilogue, x on the CPU)"""
    shapes = CONVS.get(name) or LINEARS[name.removeprefix("linear ")]
    x, weight, how = random(*shapes[0], seed=1, dtype=dtype), random(*shapes[1]), shapes[2:]
    x = laid_out(x if shared else torch.cat([x, 2 * x, -x]), layout)
    bias, key = random(len(weight), seed=2), nft.noise_key(5, range(chips))
    noise = (torch.from_numpy(NVM.operator_table()), key, STREAM, NVM.operator_spec())
    public, exact = (
        (nft.noisy_conv2d, reference.noisy_conv2d_fused) if how else (nft.noisy_linear, reference.noisy_linear_fused)
    )
    geometry = [list(h) if isinstance(h, tuple) else h for h in how]
    there = [
        t if device == "cpu" else torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=device).copy_(t)
        for t in (x, weight, bias, key)
    ]
    return (
        lambda **e: public(*there[:3], *how, nvm=NVM, key=there[3], stream=STREAM, shared=shared, **e),
        lambda x, *e: exact(x, weight, bias, *noise, *geometry, shared, *e),
        x,
    )


def parts_for(y, layout="contiguous"):
    rows, residual = y.shape[1], random(*y.shape, seed=5, dtype=y.dtype).to(y.device)
    return {
        "scale": random(rows, seed=3).to(y.device),
        "shift": random(rows, seed=4).to(y.device),
        "residual": laid_out(residual, layout),
        "relu": True,
    }


CASES = [(name, layout) for name in CONVS for layout in ("contiguous", "channels last", "strided")]
CASES += [(f"linear {name}", layout) for name in LINEARS for layout in ("contiguous", "strided")]


def finishes(y, scale, shift, residual):
    """((scale, shift, residual), relu, expected) for whichever of the four are asked for: float32, each operation
    rounded.
    """
    row = [1, -1] + [1] * (y.dim() - 2)
    for asked in range(16):
        z = y.float()
        z = z * scale.view(row) if asked & 1 else z
        z = z + shift.view(row) if asked & 2 else z
        z = z + residual.float() if asked & 4 else z
        given = [t if asked >> i & 1 else None for i, t in enumerate((scale, shift, residual))]
        yield given, bool(asked & 8), (z.relu() if asked & 8 else z).to(y.dtype)
