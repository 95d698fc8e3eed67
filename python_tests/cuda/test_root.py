"""The square root of the CUDA kernels' normals is the correctly rounded one, for every argument that can occur."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from support.paths import ROOT

pytestmark = pytest.mark.cuda
SOURCE = ROOT / "csrc" / "tests" / "cuda" / "exact_root.cu"


def test_every_root_is_rounded_right(tmp_path):
    """2^-100 .. 2^100 and zero: some 1.7 billion numbers, a second's work."""
    path = os.pathsep.join(
        [os.environ.get("PATH", ""), str(Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin")]
    )
    nvcc = shutil.which("nvcc", path=path) or pytest.skip("nvcc is needed to compile the comparison")
    major, minor = torch.cuda.get_device_capability()
    program = tmp_path / "exact_root"
    subprocess.run(
        [nvcc, f"-arch=sm_{major}{minor}", "-std=c++17", "-fmad=false", "-I", SOURCE.parents[2], "-o", program, SOURCE],
        check=True,
    )
    done = subprocess.run([program], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
