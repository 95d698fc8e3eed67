"""Stage `facts`: the GPU, the driver, the versions, and the architectures in the compiled library."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import torch

from bench.gpu.child import Task, Wrong


def output_of(*command: str) -> str | None:
    """The output of a command; None if it is missing or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def architectures(library: Path) -> list[str] | None:
    """Machine code and PTX in a library, listed by cuobjdump; None without that tool."""
    listed = output_of("cuobjdump", "-lelf", "-lptx", str(library)) if shutil.which("cuobjdump") else None
    return None if listed is None else sorted(set(re.findall(r"\.(sm_\w+\.(?:cubin|ptx))", listed)))


def run(task: Task) -> None:
    device = torch.cuda.get_device_properties(0)
    driver = output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    nvcc = re.search(r"release ([\d.]+)", output_of("nvcc", "--version") or "")
    found = {
        "device": device.name,
        "compute_capability": f"{device.major}.{device.minor}",
        "multiprocessors": device.multi_processor_count,
        "memory_bytes": device.total_memory,
        "l2_bytes": getattr(device, "L2_cache_size", None),
        "driver": driver.splitlines()[0] if driver else None,
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "nvcc": nvcc.group(1) if nvcc else None,
        "cudnn_allow_tf32": torch.backends.cudnn.allow_tf32,
        "matmul_allow_tf32": torch.backends.cuda.matmul.allow_tf32,
    }
    found["summary"] = (
        f"{found['device']}, compute capability {found['compute_capability']}, driver {found['driver']}, torch "
        f"{found['torch']}, nvcc {found['nvcc']}"
    )
    task.save(found)
    import nft_ext

    library = Path(nft_ext.__file__).parent / "_C_cuda.so"
    found |= {
        "nft_ext": nft_ext.info(),
        "library_bytes": library.stat().st_size if library.exists() else None,
        "library_holds": architectures(library),
    }
    task.save(found)
    if found["nft_ext"]["cuda_off"] is not None:
        raise Wrong(f"nft_ext cannot use CUDA: {found['nft_ext']['cuda_off']}")
