"""What several test files need: the skip where there is no CUDA device, memory that shows unwritten elements,
torch's threads, few images.
"""

import os

import pytest
import torch

import nft_ext as nft
from bench.harness import torchvision_operators
from nft_ext import data

WORKSPACE = (
    "CUBLAS_WORKSPACE_CONFIG"  # cuBLAS is deterministic, as torch then demands, only with a workspace of fixed size
)


torchvision_operators.declare()
torch.set_num_threads(1)  # the tests' tensors are small: more threads would mostly wait for each other


def pytest_runtest_setup(item):
    if item.get_closest_marker("cuda") and not torch.cuda.is_available():
        pytest.skip("torch.cuda.is_available() is False: no CUDA device, or a torch without CUDA")


@pytest.fixture
def poisoned_memory():
    """torch.empty gives NaN, and so does the scratch memory that holds programmed weights between calls."""
    ops, nvm = torch.ops.nft_ext, nft.NVMDevice(sigma=0.1)
    torch.use_deterministic_algorithms(True)
    assert torch.empty(5).isnan().all()
    nan_table = torch.full((2 << nvm.weight_bits,), torch.nan)
    weight = torch.ones(64, 64)
    bar = (None, ops.weight_step(weight, 8), nan_table, nft.noise_key(0), 0, nvm.operator_spec())
    assert ops.noisy_linear(torch.ones(1, 64), weight, None, *bar, True).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def poisoned_memory_and_exact_float32(monkeypatch):
    """On CUDA: torch.empty gives NaN, operations that are not deterministic raise, and float32 products are not done in
    TF32.
    """
    monkeypatch.setenv(WORKSPACE, os.environ.get(WORKSPACE, ":4096:8"))
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    torch.use_deterministic_algorithms(True)
    assert torch.empty(5, device="cuda").isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def threads():
    """torch.set_num_threads; afterwards the number is as it was."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def two_threads(threads):
    """For operators, which divide their work among torch's threads."""
    threads(2)


@pytest.fixture
def few_digits(monkeypatch):
    """data.load gives every eighth image only, for tests of what is done with them."""
    real = data.load
    monkeypatch.setattr(
        data, "load", lambda *which: tuple(part.subset(range(0, len(part), 8)) for part in real(*which))
    )
