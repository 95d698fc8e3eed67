"""Every operator on small, awkward shapes, for the sanitizers:

    NFT_EXT_ONE_PASS=always python -m bench.gpu.small [SECONDS [only-ours]]

Sizes end inside a block, a warp and a tile; several chips; every path, dtype and memory format; forward and backward.
A sanitizer makes every call slow. So kinds of cases alternate, and after SECONDS the remaining cases are only counted.
"""

from __future__ import annotations

import itertools
import math
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import torch

LAST_LINE = "small shapes ran"
ONLY_OURS = "only-ours"
# rows, in, out; the last three split the steps of their tiles, forward or backward
LINEAR = ((1, 1, 1), (3, 17, 5), (33, 70, 65), (3, 1100, 17), (40, 700, 9), (5, 24, 1100))
CONV = (  # rows, C, H, W; out, kernel; options
    ((1, 3, 5, 4), (5, (3, 3)), dict(padding=1)),
    ((2, 6, 9, 7), (4, (1, 2)), dict(stride=(2, 1), padding=(0, 1), dilation=(1, 2), groups=2)),
    ((2, 16, 4, 4), (65, (3, 3)), dict(padding=1)),
    # The input's gradient in one pass: strides, groups, several tiles of rows, a kernel of more taps than a step.
    ((1, 36, 5, 6), (7, (3, 2)), dict(stride=(2, 1), padding=1, dilation=(1, 2))),
    ((2, 34, 6, 8), (6, (3, 3)), dict(padding=1, groups=2)),
    ((1, 67, 4, 3), (3, (1, 1)), dict(stride=2)),
    ((1, 9, 10, 10), (2, (9, 9)), dict(padding=4)),
)
Case = Callable[[], None]


def finish(*tensors: torch.Tensor) -> None:
    for t in tensors:
        assert t.isfinite().all(), "a result is not finite"


def fused_conv(nvm, key, shared, x, weight, stride=1, padding=0, dilation=1, groups=1) -> None:
    """A convolution and the gradient of its input. The library computes those of weight and bias."""
    from nft_ext.ops.operators import ops

    geometry = [[v, v] if isinstance(v, int) else list(v) for v in (stride, padding, dilation)]
    noise = (None, None, torch.from_numpy(nvm.operator_table()).to(x.device), key, 5, nvm.operator_spec())
    y = ops.noisy_conv2d(x, weight, None, *noise, *geometry, groups, shared)
    finish(y, ops.noisy_conv2d_backward(torch.randn_like(y), x, weight, *noise, *geometry, groups, shared, 1)[0])


def cases(only_ours: bool = False) -> list[list[Case]]:
    """Programmed weights (per layer, all layers at once, channels last), linear layers, convolutions, epilogues.

    only_ours: only convolutions and gradients that a kernel of this package computes.
    """
    import nft_ext as nft
    from nft_ext.ops.operators import can_be_channels_last

    devices = {
        "one normal": nft.NVMDevice(),
        "preset": nft.NVMDevice.preset("rram4"),
        "16 bits": nft.NVMDevice(16, 4),
        "a device": nft.NVMDevice(sampling="per_device"),
        "everything": nft.NVMDevice(clip=(0.0, 1.0), truncate=2.0, stuck=(0.1, 0.1), mapping="differential"),
    }
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    keys = [nft.noise_key(1, range(chips), device="cuda") for chips in (1, 3)]
    product_devices = (devices["one normal"], devices["everything"])

    def one_layer(nvm, dtype, key, n):
        finish(nft.program_weights(torch.randn(n, device="cuda"), nvm, key=key, dtype=dtype))

    def all_layers(dtype, key):  # of all kinds, in one call
        weights = [torch.randn(n, device="cuda") for n in (1, 5, 129, 1027, 4099)]
        tables = [torch.from_numpy(nvm.operator_table()).cuda() for nvm in devices.values()]
        specs = [n for nvm in devices.values() for n in nvm.operator_spec()]
        finish(*torch.ops.nft_ext.program_many(weights, [None] * 5, [], tables, key, list(range(5)), specs, [], dtype))

    @torch.no_grad()
    def channels_last(nvm, dtype, key):  # the epilogue of a library product
        weights = [
            torch.randn(*s, device="cuda") for s in ((8, 3, 3, 3), (5, 64, 3, 3), (3, 1024, 2, 1), (16, 7, 7, 7))
        ]
        table, count = torch.from_numpy(nvm.operator_table()).cuda(), len(weights)
        finish(
            *torch.ops.nft_ext.program_many(
                weights,
                [None] * count,
                [],
                [table] * count,
                key,
                list(range(count)),
                nvm.operator_spec() * count,
                [],
                dtype,
                True,
            )
        )
        weights = [w for w in weights if can_be_channels_last(w, nvm.operator_spec())]
        count, scales = len(weights), [torch.randn(len(w), device="cuda") for w in weights]
        finish(
            *torch.ops.nft_ext.program_many(
                weights,
                [None] * count,
                [],
                [table] * count,
                key,
                list(range(count)),
                nvm.operator_spec() * count,
                scales,
                dtype,
                True,
            )
        )
        for shape in ((3, 8, 5, 3), (2, 7, 3, 3), (5, 24)):
            y, row = torch.randn(*shape, device="cuda").to(dtype), torch.randn(shape[1], device="cuda")
            torch.ops.nft_ext.epilogue_(y, row, row, y.clone(), True)
            finish(y)

    def linear(nvm, dtype, key, shared, sizes):
        rows, features, out = sizes
        weight, bias = (torch.randn(*s, device="cuda", requires_grad=True) for s in ((out, features), (out,)))
        x = torch.randn(rows * (1 if shared else len(key)), features, device="cuda").to(dtype).requires_grad_()
        y = nft.noisy_linear(x, weight, bias, nvm=nvm, key=key, shared=shared)
        finish(y, *torch.autograd.grad(y.float().sum(), (x, weight, bias)))

    def conv(nvm, dtype, key, shared, sizes, layout):
        (rows, channels, *side), (out, kernel), options = sizes
        weight = torch.randn(out, channels // options.get("groups", 1), *kernel, device="cuda", requires_grad=True)
        x = torch.randn(rows * (1 if shared else len(key)), channels, *side, device="cuda").to(dtype)
        leaf = x.to(memory_format=layout).requires_grad_()
        if only_ours:
            fused_conv(nvm, key, shared, leaf.detach(), weight.detach(), **options)
            return
        y = nft.noisy_conv2d(leaf, weight, nvm=nvm, key=key, shared=shared, **options)
        finish(y, *torch.autograd.grad(y.float().sum(), (leaf, weight)))

    @torch.no_grad()
    def epilogue(nvm, dtype, key, shared, sizes, layout):  # residual and ReLU in the epilogue
        (rows, channels, *side), (out, kernel), options = sizes
        weight = torch.randn(out, channels // options.get("groups", 1), *kernel, device="cuda")
        x = (
            torch.randn(rows * (1 if shared else len(key)), channels, *side, device="cuda")
            .to(dtype)
            .to(memory_format=layout)
        )
        y = nft.noisy_conv2d(x, weight, nvm=nvm, key=key, shared=shared, **options)
        finish(nft.noisy_conv2d(x, weight, nvm=nvm, key=key, shared=shared, residual=y, relu=True, **options))

    def each(function: Callable[..., None], *values: Sequence) -> list[Case]:
        return [lambda chosen=chosen: function(*chosen) for chosen in itertools.product(*values)]

    return [
        each(one_layer, devices.values(), dtypes, keys, (1, 5, 129, 1027)),
        each(all_layers, dtypes, keys),
        each(channels_last, product_devices, dtypes, keys),
        each(linear, product_devices, dtypes, keys, (True, False), LINEAR),
        each(conv, product_devices, dtypes, keys, (True, False), CONV, (torch.contiguous_format, torch.channels_last)),
        each(
            epilogue, product_devices, dtypes, keys, (True, False), CONV, (torch.contiguous_format, torch.channels_last)
        ),
    ]


def in_turns(kinds: Sequence[Sequence[Case]]) -> Iterator[Case]:
    """Alternates between the kinds, each kind shuffled: an early end omits no kind completely."""
    shuffled = [random.Random(0).sample(kind, len(kind)) for kind in kinds]
    for together in itertools.zip_longest(*shuffled):
        yield from (case for case in together if case is not None)


def main(seconds: float = math.inf, only_ours: bool = False) -> None:
    end = time.monotonic() + seconds
    torch.manual_seed(0)
    kinds, ran = cases(only_ours), 0
    for case in in_turns(kinds):
        if time.monotonic() > end:
            break
        case()
        ran += 1
    torch.cuda.synchronize()
    print(f"{ran} of {sum(map(len, kinds))} {LAST_LINE}", flush=True)


if __name__ == "__main__":
    main(*map(float, sys.argv[1:2]), only_ours=ONLY_OURS in sys.argv[2:])
