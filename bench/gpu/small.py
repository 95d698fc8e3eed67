"""Every operator on small, awkward shapes, for the sanitizers: python -m bench.gpu.small. Sizes end inside a block, a warp and a
tile; several chips; every path, dtype and memory format; forward and backward."""

from __future__ import annotations

import itertools

import torch

LAST_LINE = "all small shapes ran"
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


def main() -> None:
    import nft_ext as nft

    torch.manual_seed(0)
    devices = {
        "one normal": nft.NVMDevice(), "preset": nft.NVMDevice.preset("rram4"), "16 bits": nft.NVMDevice(16, 4),
        "a device": nft.NVMDevice(sampling="per_device"),
        "everything": nft.NVMDevice(clip=(0.0, 1.0), truncate=2.0, stuck=(0.1, 0.1), mapping="differential"),
    }
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    keys = [nft.noise_key(1, range(chips), device="cuda") for chips in (1, 3)]

    def finish(*tensors: torch.Tensor) -> None:
        for t in tensors:
            assert t.isfinite().all(), "a result is not finite"

    for nvm, dtype, key, n in itertools.product(devices.values(), dtypes, keys, (1, 5, 129, 1027)):
        finish(nft.program_weights(torch.randn(n, device="cuda"), nvm, key=key, dtype=dtype))
    for dtype, key in itertools.product(dtypes, keys):  # layers of all kinds in one launch
        weights = [torch.randn(n, device="cuda") for n in (1, 5, 129, 1027, 4099)]
        tables = [torch.from_numpy(nvm.operator_table()).cuda() for nvm in devices.values()]
        specs = [n for nvm in devices.values() for n in nvm.operator_spec()]
        finish(*torch.ops.nft_ext.program_many(weights, [None] * 5, [], tables, key, list(range(5)), specs, [], dtype))
    for (name, nvm), dtype, key, shared in itertools.product(devices.items(), dtypes, keys, (True, False)):
        if name not in ("one normal", "everything"):
            continue
        for rows, features, out in LINEAR:
            weight, bias = (torch.randn(*s, device="cuda", requires_grad=True) for s in ((out, features), (out,)))
            x = torch.randn(rows * (1 if shared else len(key)), features, device="cuda").to(dtype).requires_grad_()
            y = nft.noisy_linear(x, weight, bias, nvm=nvm, key=key, shared=shared)
            finish(y, *torch.autograd.grad(y.float().sum(), (x, weight, bias)))
        for (rows, channels, *side), (out, kernel), options in CONV:
            weight = torch.randn(out, channels // options.get("groups", 1), *kernel, device="cuda", requires_grad=True)
            x = torch.randn(rows * (1 if shared else len(key)), channels, *side, device="cuda").to(dtype)
            for layout in (torch.contiguous_format, torch.channels_last):
                leaf = x.to(memory_format=layout).requires_grad_()
                y = nft.noisy_conv2d(leaf, weight, nvm=nvm, key=key, shared=shared, **options)
                finish(y, *torch.autograd.grad(y.float().sum(), (leaf, weight)))
    torch.cuda.synchronize()
    print(LAST_LINE, flush=True)


if __name__ == "__main__":
    main()
