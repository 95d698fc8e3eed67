"""Memory that really runs out inside an operator: monte_carlo goes on with half the chips, with the same result."""

import subprocess
import sys
import textwrap

import pytest

from support.paths import ROOT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and a limit on the address space")

CHILD = """
    import resource, warnings
    import torch
    from torch import nn
    import nft_ext as nft

    torch.set_num_threads(2)  # with several threads oneDNN calls a failed allocation "could not create a primitive"
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    linear = nn.Sequential(nn.Linear(64, 8000), nn.ReLU(), nn.Linear(8000, 10)), torch.randn(64, 64)
    conv = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))
    for net, images in (linear, (conv, torch.randn(8, 3, 64, 64))):
        model, data = nft.convert(net, nft.NVMDevice(sigma=0.1)), (images, torch.arange(len(images)) % 10)

        def report(runs):
            metrics = ("accuracy", "nll")
            return nft.monte_carlo(model, data, runs=runs, chips_per_pass=runs, metrics=metrics, progress=False)

        report(2)  # loads what the first call loads
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (80 << 20), resource.RLIM_INFINITY))
        limited = report(24)
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        whole = report(24)
        assert not any("memory" in note for note in whole.notes), whole.notes
        assert limited.accuracy.per_run.tolist() == whole.accuracy.per_run.tolist()
        assert torch.allclose(*(torch.as_tensor(found.nll.per_run) for found in (limited, whole)), rtol=1e-5)
        print(*limited.notes, sep="; ")
"""


def run(code):
    """The lines that a fresh interpreter prints."""
    command = [sys.executable, "-c", textwrap.dedent(code)]
    found = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert found.returncode == 0, found.stderr
    return found.stdout.splitlines()


@pytest.mark.slow
def test_half_the_chips_under_a_real_limit():
    notes = run(CHILD)
    assert len(notes) == 2, "a linear layer and a convolution"
    assert all("memory ran out; later passes ran at most" in note for note in notes), notes


RAW = """
    import resource, sys, torch, nft_ext as nft
    torch.set_num_threads(2)
    nvm, key, x, weight = nft.NVMDevice(), nft.noise_key(0), torch.randn(1, 4096), torch.randn(4096, 4096)
    nft.noisy_linear(x, weight[:64], nvm=nvm, key=key)
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (8 << 20), resource.RLIM_INFINITY))
    for call in (
        lambda: nft.program_weights(weight, nvm, draws=range(4)),  # memory of torch
        lambda: nft.program_weights(weight, nvm, draws=0),  # memory of the pool
    ):
        try:
            call()
        except RuntimeError as error:
            print(str(error).splitlines()[0])
    assert nft.noisy_linear(x, weight[:64], nvm=nvm, key=key).isfinite().all(), "the next call works"
"""


def test_the_operators_say_that_memory_ran_out():
    said = run(RAW)
    assert len(said) == 2
    assert all("out of memory" in line or "can't allocate memory" in line for line in said), said
