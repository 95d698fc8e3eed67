"""Stage `identity`: chips on CUDA equal those on the CPU bit for bit, for many device models.

The device models are those of python_tests/support/every_device.py.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

import nft_ext as nft
from bench.gpu.child import Task, Wrong

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SIZES = ((1,), (3,), (37, 11, 3), (1001,), (20_001,))
SHOWN = 5


def keys() -> dict[str, Tensor]:
    """Keys [S, 2] of several domains, seeds at the ends of their range, one chip and many."""
    return {
        "ends": torch.cat([nft.noise_key(2**64 - 1, [0, 2**32 - 1]), nft.noise_key(0, 0, domain="training")]),
        "one": nft.noise_key(2**63 + 12345, 3),
        "many": nft.noise_key(7, range(9), domain="selection"),
    }


def bits(t: Tensor) -> Tensor:
    return t.contiguous().view(torch.int32 if t.dtype == torch.float32 else torch.int16)


def differences(nvm: nft.NVMDevice, weight: Tensor, key: Tensor, stream: int) -> Iterator[str]:
    """Descriptions of the differences between CUDA and the CPU."""
    there, on = weight.cuda(), key.cuda()
    ops, m = torch.ops.nft_ext, nvm.weight_bits
    step = ops.weight_step(weight, m)
    codes = ops.quantize(weight, step, m)
    if not torch.equal(bits(ops.weight_step(there, m).cpu()), bits(step)):
        yield "step"
    if not torch.equal(ops.quantize(there, step.cuda(), m).cpu(), codes):
        yield "codes"
    expected = nft.program_weights(weight, nvm, key=key, stream=stream)
    table = torch.from_numpy(nvm.operator_table()).cuda()
    for dtype in DTYPES:
        want = bits(expected.to(dtype))
        found = {
            "": nft.program_weights(there, nvm, key=on, stream=stream, dtype=dtype),
            ", from codes": ops.program(
                there, codes.cuda(), step.cuda(), table, on, stream, nvm.operator_spec(), dtype
            ),
        }
        for way, chips in found.items():
            wrong = int((bits(chips.cpu()) != want).sum())
            if wrong:
                yield f"{str(dtype).removeprefix('torch.')}{way}: {wrong} of {want.numel()} weights"


def run(task: Task) -> None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "python_tests"))
    from support.every_device import DEVICES, STREAM, weights

    wrong: list[str] = []
    compared = 0
    for name, nvm in DEVICES.items():
        for shape in SIZES:
            for which, key in keys().items():
                found = list(differences(nvm, weights(*shape), key, STREAM))
                wrong += [f"{name}, {list(shape)}, key {which}: {d}" for d in found]
                compared += 1
        task.save(
            {
                "compared": compared,
                "wrong": wrong,
                "devices": len(DEVICES),
                "summary": f"{len(wrong)} differences in {compared} cases"
                if wrong
                else f"{compared} cases of {len(DEVICES)} device models, float32, bfloat16, float16: equal to the CPU",
            }
        )
    if wrong:
        raise Wrong(
            "chips differ from the CPU's: " + "; ".join(wrong[:SHOWN]) + ("; ..." if len(wrong) > SHOWN else "")
        )
