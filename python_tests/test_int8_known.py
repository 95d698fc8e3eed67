"""Known answers of the 8-bit products, csrc/tests/int8_known_answers.txt: the operators give every bit of them, and so does the CUDA
kernels' own loop on the host (csrc/tests/test_cuda_int8_known.cpp). `python python_tests/test_int8_known.py` writes the file anew,
from the definition in nft_ext.reference."""

from pathlib import Path

import pytest
import torch

import nft_ext as nft
from nft_ext import reference

FILE = Path(__file__).resolve().parents[1] / "csrc" / "tests" / "int8_known_answers.txt"
HEADER = """# Known answers of the 8-bit products (docs/int8.md). value(i) = (i * 2654435761 mod 2^32 >> 8) * 2^-23 - 1;
# weight[i] = value(i), x[i] = value(1000 + i) * 2^image, bias[i] = value(2000 + i); chips of seed 5, draws 0, 1, ...;
# stream 7; results with their bias, contiguous.
#
# case name images channels height width rows groups kernel*2 stride*2 padding*2 dilation*2 chips weight_bits device_bits path mapping
# table: the operators' device table; y: results; both as bits of float32
"""
# images, channels, height, width, rows, groups, kernel, stride, padding, dilation, chips; the device
CASES = {
    "linear": ((3, 70, 1, 1, 5, 1, (1, 1), (1, 1), (0, 0), (1, 1), 2), nft.NVMDevice(weight_bits=4, sigma=0.1)),
    "convolution": ((2, 5, 4, 3, 3, 1, (3, 3), (1, 1), (1, 1), (1, 1), 1), nft.NVMDevice.preset("fefet2", weight_bits=4, sigma=0.2)),
    "geometry": ((1, 6, 7, 5, 4, 2, (3, 2), (2, 1), (2, 1), (1, 2), 2), nft.NVMDevice(weight_bits=6, device_bits=3, sigma=0.05)),
    "devices": ((2, 9, 3, 3, 3, 1, (2, 3), (1, 1), (0, 1), (1, 1), 1),
                nft.NVMDevice(sigma=0.2, clip=(-0.1, 1.0), stuck=(0.05, 0.05), mapping="differential")),
    "without noise": ((2, 40, 1, 1, 6, 1, (1, 1), (1, 1), (0, 0), (1, 1), 1), nft.NVMDevice(weight_bits=5, device_bits=1)),
}


def value(first, *shape):
    i = torch.arange(first, first + torch.Size(shape).numel())
    return ((i * 2654435761 % 2**32 >> 8).float() * 2.0**-23 - 1.0).reshape(shape)


def arguments(name, device="cpu"):
    """Of the operator for convolutions, up to the epilogue."""
    (images, channels, height, width, rows, groups, kernel, *how, chips), nvm = CASES[name]
    x = value(1000, images, channels, height, width) * 2.0 ** torch.arange(images).view(-1, 1, 1, 1)
    weight, table = value(0, rows, channels // groups, *kernel), torch.from_numpy(nvm.operator_table())
    spec = nvm.operator_spec(name != "without noise")
    there = [t.to(device) for t in (x, weight, value(2000, rows), table, nft.noise_key(5, range(chips)))]
    return *there[:3], *there[3:], 7, spec, *map(list, how), groups, True


def words(t):
    return " ".join(f"{word & 0xFFFFFFFF:08x}" for word in t.flatten().view(torch.int32).tolist())


def text():
    lines = [HEADER]
    for name, ((*sizes, kernel, stride, padding, dilation, chips), nvm) in CASES.items():
        called = arguments(name)
        spec = called[6]
        numbers = [*sizes, *kernel, *stride, *padding, *dilation, chips, *spec]
        lines += [f"case {name.replace(' ', '_')} {' '.join(map(str, numbers))}\n", f"table {words(called[3])}\n",
                  f"y {words(reference.noisy_conv2d_int8(*called, None, None, None, False))}\n"]
    return "".join(lines)


def test_the_file_is_what_the_definition_gives():
    assert FILE.read_text() == text()


@pytest.mark.parametrize("name", CASES)
def test_the_operators_give_every_bit(name):
    found = answers()[name.replace(" ", "_")]
    x, weight, bias, *rest = arguments(name)
    epilogue = (None, None, None, False)
    assert words(torch.ops.nft_ext.noisy_conv2d_int8(x, weight, bias, None, None, *rest, *epilogue)) == found
    if weight.shape[2:] == (1, 1):
        y = torch.ops.nft_ext.noisy_linear_int8(x.flatten(1), weight.flatten(1), bias, None, None, *rest[:4], True, *epilogue)
        assert words(y) == found


def answers():
    lines = FILE.read_text().splitlines()
    names = [line.split()[1] for line in lines if line.startswith("case ")]
    return dict(zip(names, [line[2:] for line in lines if line.startswith("y ")]))


if __name__ == "__main__":
    FILE.write_text(text())
