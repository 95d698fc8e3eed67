"""Who multiplies bfloat16 on the CPU: what is said is true of this processor, and the slow case is warned of, before
any work.
"""

import platform
import warnings
from pathlib import Path

import pytest
import torch

import nft_ext as nft
from nft_ext._common import bfloat16
from nft_ext._common.bfloat16 import Products, on_cpu, warn_where_slow
from support.training_runs import VALIDATION, run, small_net


def flags() -> set[str]:
    """The processor's own, on Linux on x86; none elsewhere."""
    info = Path("/proc/cpuinfo")
    lines = [line for line in info.read_text().splitlines() if line.startswith("flags")] if info.exists() else []
    return set(lines[0].split(":")[1].split()) if lines else set()


@pytest.mark.skipif(not flags(), reason="only Linux on x86 lists the processor's instruction sets")
def test_it_is_this_processor():
    found = on_cpu()
    assert (found is Products.PROCESSOR) == ("avx512_bf16" in flags())
    if not flags() & {"avx512f", "avx_ne_convert"}:
        assert found is Products.SLOW


@pytest.mark.parametrize(
    "library, own, expected",
    [
        (True, True, Products.PROCESSOR),
        (True, False, Products.FLOAT32),
        (False, False, Products.SLOW),
    ],
)
def test_it_follows_from_the_library_and_the_instruction_set(monkeypatch, library, own, expected):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: library)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: own)
    assert on_cpu() is expected


def test_a_torch_that_does_not_tell_is_no_failure(monkeypatch):
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported")
    assert on_cpu() in (Products.UNKNOWN, Products.SLOW)
    assert nft.info()["bfloat16_on_cpu"] == on_cpu().value


def evaluate(precision: str) -> None:
    nft.monte_carlo(
        nft.convert(small_net().eval(), nft.NVMDevice(sigma=0.1)),
        VALIDATION,
        runs=2,
        progress=False,
        precision=precision,
    )


@pytest.mark.parametrize(
    "work", [evaluate, lambda precision: run(epochs=1, precision=precision)], ids=["monte_carlo", "fit"]
)
def test_only_a_slow_cpu_is_warned_of(monkeypatch, work):
    monkeypatch.setattr(bfloat16, "on_cpu", lambda: Products.SLOW)
    with pytest.warns(RuntimeWarning, match="precision: bfloat16 on this CPU uses .* many times slower than float32"):
        work("bfloat16")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        work("float32")
        monkeypatch.setattr(bfloat16, "on_cpu", lambda: Products.FLOAT32)
        work("bfloat16")
        monkeypatch.setattr(bfloat16, "on_cpu", lambda: Products.SLOW)
        warn_where_slow("bfloat16", torch.device("cuda"))
