"""NFT_EXT_CPU_ISA, read once by each process, chooses the instruction set: the same chips, right products; a wrong one
is named.
"""

import subprocess
import sys

import pytest

import nft_ext as nft
from support import every_device
from support.paths import importing

ISAS = nft.info()["instruction_sets"]
CODE = """
import torch
from nft_ext import info
from support import every_device, one_pass
torch.set_num_threads({threads})
for name in [*one_pass.CONVS, *one_pass.LINEARS]:
    noisy, plain, *operands = one_pass.case(name)
    want, bound = one_pass.expected(plain, *operands, one_pass.KEY, True)
    assert ((noisy(*operands, one_pass.KEY) - want).abs() <= bound).all(), name
print(info()["instruction_set"], every_device.digest())
"""


def run(code, isa):
    return subprocess.run(
        [sys.executable, "-c", code], env=importing(NFT_EXT_CPU_ISA=isa), capture_output=True, text=True, timeout=300
    )


@pytest.mark.slow
@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set_gives_the_same_chips_and_right_products(isa):
    """The native tests compare the kernels, this one their use."""
    done = run(CODE.format(threads=1 + ISAS.index(isa)), isa)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [isa, every_device.digest()]


def test_an_unknown_instruction_set_is_an_error_that_names_the_variable():
    done = run("import torch, nft_ext; nft_ext.program_weights(torch.ones(3), nft_ext.NVMDevice())", "AVX2")
    message = (
        f"NFT_EXT_CPU_ISA: must be one of the instruction sets this processor can run ({', '.join(ISAS)}); got AVX2"
    )
    assert done.returncode != 0 and message in done.stderr
