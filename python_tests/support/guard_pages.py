"""Every CPU operator on inputs that border a page without access: a read or a write beyond an input is a SIGSEGV.

Run as a program, on the instruction set that NFT_EXT_CPU_ISA names. The results must also be those of ordinary inputs.
"""

import ctypes
import itertools
import mmap

import torch

import nft_ext as nft

ops = torch.ops.nft_ext
PAGE = mmap.PAGESIZE
KEY = nft.noise_key(3, [1, 7])
DEVICES = {
    "off": (nft.NVMDevice(), False),
    "fast": (nft.NVMDevice(), True),
    "fast, gathered": (nft.NVMDevice.preset("fefet6", sigma=0.1), True),
    "16 bits": (nft.NVMDevice(16, 4), True),
    "per device": (nft.NVMDevice(sampling="per_device"), True),
    "differential": (nft.NVMDevice(mapping="differential", clip=(-0.1, 1.1), stuck=(0.05, 0.05)), True),
}
# [rows, in, out]: one row and many (one-pass and library products), weights no multiple of 256 and fewer than a chunk
LINEARS = [(1, 5, 3), (3, 301, 41), (16, 64, 65), (2, 257, 300), (200, 33, 70)]
# [images, channels, side, out, kernel, stride, padding, groups]
CONVS = [(1, 3, 5, 6, 3, 2, 1, 1), (2, 8, 9, 20, 3, 1, 1, 1), (1, 16, 16, 33, 1, 1, 0, 1), (40, 8, 12, 24, 3, 1, 0, 2)]

_libc = ctypes.CDLL(None, use_errno=True)
NO_ACCESS = 0  # PROT_NONE


def guarded(value, at_end):
    """A copy of a tensor whose last byte lies before a page without access, or whose first byte lies behind one."""
    size = value.numel() * value.element_size()
    if size == 0:
        return value
    pages = -(-size // PAGE)
    area = mmap.mmap(-1, (pages + 2) * PAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(area))
    for page in (0, pages + 1):
        if _libc.mprotect(ctypes.c_void_p(start + page * PAGE), PAGE, NO_ACCESS):
            raise OSError(ctypes.get_errno(), "mprotect")
    offset = PAGE + (pages * PAGE - size if at_end else 0)
    flat = torch.frombuffer(area, dtype=value.dtype, count=value.numel(), offset=offset)  # keeps `area` alive
    return flat.as_strided(value.shape, value.stride()).copy_(value)


def place(values, at_end):
    """The same arguments with every tensor at a guard page."""
    if isinstance(values, torch.Tensor):
        return guarded(values, at_end)
    if isinstance(values, (list, tuple)):
        return type(values)(place(value, at_end) for value in values)
    return values


def calls():
    """(name, operator, arguments) of every operator, on every path."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    types = itertools.cycle([torch.float32, torch.bfloat16, torch.float16])  # of weights
    for (device, (nvm, enabled)), from_codes in itertools.product(DEVICES.items(), (False, True)):
        bits, spec, table = nvm.weight_bits, nvm.operator_spec(enabled), torch.from_numpy(nvm.operator_table())

        def bar(weight):
            step = ops.weight_step(weight, bits) if from_codes else None
            return [weight, ops.quantize(weight, step, bits) if from_codes else None, step, table, KEY, 5, spec]

        for dtype, (rows, fan_in, out) in itertools.product((torch.float32, torch.bfloat16), LINEARS):
            name = f"{device}, codes {from_codes}, {dtype}, linear {rows}x{fan_in}x{out}"
            x, weight, bias = normal(rows, fan_in).to(dtype), normal(out, fan_in).to(next(types)), normal(out).to(dtype)
            yield name, ops.program, [*bar(weight), dtype]
            weight, *noise = bar(weight)
            yield name, ops.noisy_linear, [x, weight, bias, *noise, True]
            epilogue = [normal(out), normal(out), normal(2 * rows, out).to(dtype), True]
            yield name, ops.noisy_linear_fused, [x, weight, bias, *noise, True, *epilogue]
            yield name, ops.noisy_linear_backward, [normal(2 * rows, out).to(dtype), x, weight, *noise, True, 7]
        for last, (images, channels, side, out, kernel, stride, padding, groups) in itertools.product(
            (False, True), CONVS
        ):
            name = f"{device}, codes {from_codes}, conv {images}x{channels}x{side}, {out}x{kernel}, last {last}"
            layout = torch.channels_last if last else torch.contiguous_format
            x = normal(images, channels, side, side).contiguous(memory_format=layout)
            weight, *noise = bar(normal(out, channels // groups, kernel, kernel).to(next(types)))
            geometry = [[stride] * 2, [padding] * 2, [1, 1], groups]
            size = (side + 2 * padding - kernel) // stride + 1
            like = normal(2 * images, out, size, size).contiguous(memory_format=layout)
            yield name, ops.noisy_conv2d, [x, weight, normal(out), *noise, *geometry, True]
            epilogue = [normal(out), None, like, True]
            yield name, ops.noisy_conv2d_fused, [x, weight, normal(out), *noise, *geometry, True, *epilogue]
            yield name, ops.noisy_conv2d_backward, [like, x, weight, *noise, *geometry, True, 7]
            yield name, ops.epilogue_, [like.clone(), *epilogue]
        weights = [normal(*shape).to(next(types)) for shape in ((41, 301), (6, 4, 3, 3), (3,))]
        bars = [bar(weight) for weight in weights]
        codes, steps = [b[1] for b in bars], [b[2] for b in bars] if from_codes else []
        for weight, (_, _, step, *_) in zip(weights, bars):
            yield device, ops.weight_step, [weight, bits]
            if from_codes:
                yield device, ops.quantize, [weight, step, bits]
        yield device, ops.weight_step_many, [weights, [bits] * 3]
        many = [weights, codes, steps, [table] * 3, KEY, [1, 2, 3], spec * 3, [], torch.float32]
        yield device, ops.program_many, many


def close(found, expected):
    """Whether two results agree. torch's products may round differently at another alignment."""
    largest = float(expected.abs().max()) if expected.numel() else 0.0
    return torch.allclose(found.float(), expected.float(), rtol=0, atol=1e-2 * largest)


def main():
    count = 0
    for at_end in (True, False):
        for name, operator, arguments in calls():
            placed = place(arguments, at_end)
            for _ in range(4 if operator is ops.program else 1):  # from the fourth call on max|W| is expected
                expected, found = operator(*arguments), operator(*placed)
            if operator is ops.epilogue_:
                expected, found = arguments[0], placed[0]
            pairs = zip(*([r] if isinstance(r, torch.Tensor) else r for r in (found, expected)))
            assert all(close(*pair) for pair in pairs), (name, operator)
            count += 1
    print(count, nft.info()["instruction_set"])


if __name__ == "__main__":
    main()
