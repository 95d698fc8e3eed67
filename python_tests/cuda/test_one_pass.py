"""NFT_EXT_ONE_PASS: which products on CUDA generate their weights themselves. It is read when the library is loaded, so
each value gets a process of its own. The bounds of auto: csrc/tests/cuda/test_one_pass_switch.cpp.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nft_ext.cli.main import main
from nft_ext.ops import build_info
from support.paths import ROOT

HERE = Path(__file__).parent
# What multiplies, under a rule that is not this process's.
PRODUCTS = ["test_products.py", "test_epilogue.py", "test_compile.py", "test_operators.py"]

on_cuda = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="torch.cuda.is_available() is False: no CUDA device, or a torch without CUDA"
)


def run(rule, *command):
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=os.environ | {"NFT_EXT_ONE_PASS": rule},
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.parametrize("given, rule", [("", "auto"), ("auto", "auto"), ("always", "always"), ("never", "never")])
def test_info_shows_the_rule(given, rule):
    done = run(given, "-m", "nft_ext.cli", "info", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["one_pass"] == rule


def test_an_unknown_rule_is_refused_on_any_machine(monkeypatch, capsys):
    done = run("sometimes", "-m", "nft_ext.cli", "info")
    assert (done.returncode, done.stderr) == (
        1,
        "nft-ext info: NFT_EXT_ONE_PASS: must be auto, always or never; got sometimes\n",
    )
    monkeypatch.setattr(build_info, "_ONE_PASS", "Always")
    with pytest.raises(ValueError, match="NFT_EXT_ONE_PASS: must be auto, always or never; got Always"):
        build_info.info()
    assert main(["info"]) == 1
    assert "got Always" in capsys.readouterr().err


# ---- on a device

SAME_AS_THE_LIBRARYS = """
import json
import torch
import nft_ext as nft

torch.manual_seed(0)
nvm, key = nft.NVMDevice(), nft.noise_key(3, device="cuda")
weight, found = torch.randn(96, 128, device="cuda"), []
chip = nft.program_weights(weight, nvm, key=key)[0]
for rows in (16, 64):
    x, grad = (torch.randn(rows, n, device="cuda", requires_grad=n == 128) for n in (128, 96))
    y = nft.noisy_linear(x, weight, nvm=nvm, key=key)
    y.backward(grad)
    for ours, librarys in ((y, torch.nn.functional.linear(x, chip)), (x.grad, grad @ chip)):
        torch.testing.assert_close(ours, librarys, rtol=1e-3, atol=1e-3)
        found.append(torch.equal(ours, librarys))
print(json.dumps(found))
"""


@on_cuda
@pytest.mark.cuda
@pytest.mark.parametrize(
    "rule, same", [("auto", [False, True, True, True]), ("always", [False] * 4), ("never", [True] * 4)]
)
def test_the_rule_chooses_the_product(rule, same):
    """A product of the library's on programmed weights is torch's bit for bit; one pass adds up in another order."""
    done = run(rule, "-c", SAME_AS_THE_LIBRARYS)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == same, "y and dL/dx of 16 rows, then of 64"


@on_cuda
@pytest.mark.cuda
def test_an_unknown_rule_is_refused_by_the_first_product():
    code = (
        "import nft_ext as nft, torch; x = torch.ones(9, 9).cuda(); "
        "nft.noisy_linear(x, x, nvm=nft.NVMDevice(), key=nft.noise_key(device='cuda'))"
    )
    done = run("sometimes", "-c", code)
    assert done.returncode == 1 and "NFT_EXT_ONE_PASS: must be auto, always or never; got sometimes" in done.stderr


@on_cuda
@pytest.mark.cuda
def test_all_products_in_one_pass():
    """The tests of the products once more, all of them by the one-pass kernel."""
    files = [str(HERE / name) for name in PRODUCTS]
    done = run("always", "-m", "pytest", "-m", "cuda and not slow", "-q", "-p", "no:cacheprovider", *files)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
