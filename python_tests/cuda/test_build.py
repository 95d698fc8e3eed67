"""The CUDA library as a file: what it needs, what it is compiled for, what its kernels cost. No GPU is needed here.

NFT_EXT_CUDA_LIBRARY names another file than the one beside the package.
"""

import os
import re
import shutil
import site
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import nft_ext
from nft_ext import _core

HERE = Path(nft_ext.__file__).parent
LIBRARY = Path(os.environ.get("NFT_EXT_CUDA_LIBRARY", HERE / "_C_cuda.so"))
WHY_NOT = f"{LIBRARY.name} was not built: {_core.build()['cuda_off'] or 'it is missing beside the package'}"
pytestmark = pytest.mark.skipif(not LIBRARY.exists(), reason=WHY_NOT)

# From libtorch_cuda.so; everything else of torch is in libtorch_cpu.so.
CUDA_SYMBOLS = {"aoti_torch_get_current_cuda_stream", "torch_c10_cuda_check_msg", "torch_c10_cuda_free_error_msg"}
OPERATORS = [
    "draw_key",
    "weight_step",
    "weight_step_many",
    "quantize",
    "program",
    "program_many",
    "epilogue_",
    "noisy_linear",
    "noisy_linear_fused",
    "noisy_linear_backward",
    "noisy_conv2d",
    "noisy_conv2d_fused",
    "noisy_conv2d_backward",
]
# Registers per thread, by the first pattern that a kernel's name has: csrc/cuda/sampler/sampler.cu asks for 8 blocks of
# 256 threads per multiprocessor, 5 on the fast path, 4 on the per-device path, 6 or 3 where the table is too large for
# shared memory, and 3 or 2 where weights are stored channels last; csrc/cuda/sampler/step_runs.cu for 5 blocks, or 4 on
# the per-device path; csrc/cuda/one_pass/launch.h for 2 wide blocks of 256 threads or 5 narrow ones of 128. Adding up
# parts takes few threads, whose registers cost nothing.
MOST_REGISTERS = {
    r"one_pass_kernel\w*OutTypeE\dELb1": 128,
    r"one_pass_kernel\w*OutTypeE\dELb0": 102,
    r"add_parts_kernel": 64,
    r"program_kernelILi2\w*Lb1": 64,
    r"program_kernelILi2": 80,
    r"program_kernelILi1\w*Lb0": 40,
    r"program_kernelILi1\w*Lb1": 48,
    r"program_channels_last_kernelI\w*(OutTypeE0|Lb1)": 128,
    r"program_channels_last_kernel": 80,
    r"epilogue_eights_kernel": 40,
    r"program_runs_kernelILi2": 64,
    r"program_runs_kernel|quantize_runs_kernel|run_maxima_kernel": 48,
    r"": 32,
}
FILES = 4  # of kernels: sampler.cu, step_runs.cu, product.cu and gradient.cu
KERNELS = {
    "program_kernel": 30,
    "program_channels_last_kernel": 12,
    "epilogue_eights_kernel": 3,
    "quantize_kernel": 2,
    "abs_max_kernel": 2,
    "step_kernel": 2,
    "program_runs_kernel": 5,
    "quantize_runs_kernel": 2,
    "check_run_codes_kernel": 2,
    "run_maxima_kernel": 1,
    "steps_of_runs_kernel": 1,
    "add_parts_kernel": 2,
    # types x tiles x paths
    "one_pass_kernelINS_7generic5Sizes": 3 * 2 * 3,
    "one_pass_kernelINS_7generic13GradientSizes": 3 * 2 * 3,
}


def output_of(*command: object) -> str:
    return subprocess.run([str(c) for c in command], check=True, capture_output=True, text=True).stdout


def tool(name: str) -> str:
    return shutil.which(name) or pytest.skip(f"{name} is not installed; run: sudo apt-get install binutils")


def cuobjdump() -> str:
    """The toolkit's, or the one of the package nvidia-cuda-cuobjdump."""
    folders = [Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin"]
    folders += [bin_ for packages in site.getsitepackages() for bin_ in Path(packages).glob("nvidia/cu*/bin")]
    path = os.pathsep.join([os.environ.get("PATH", ""), *map(str, folders)])
    found = shutil.which("cuobjdump", path=path)
    return found or pytest.skip("cuobjdump was not found; run: pip install nvidia-cuda-cuobjdump")


def test_needs_both_torch_libraries():
    """Without the names in the file, the loader would not look into torch's libraries for their functions."""
    needed = re.findall(r"\(NEEDED\).*\[(.+?)\]", output_of(tool("readelf"), "-d", LIBRARY))
    assert {"libtorch_cpu.so", "libtorch_cuda.so"} <= set(needed)
    assert not [name for name in needed if "cudart" in name], (
        "the CUDA runtime is linked in, whatever version torch brings"
    )


def test_asks_torch_for_nothing_else():
    """Undefined symbols are in the C library, in libtorch_cpu.so, or are three CUDA functions of the stable ABI."""
    lines = output_of(tool("nm"), "-D", "--undefined-only", LIBRARY).splitlines()
    undefined = {name for kind, name in (line.split()[-2:] for line in lines) if kind == "U" and "@" not in name}
    torch_cpu = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    defined = {line.split()[-1] for line in output_of(tool("nm"), "-D", "--defined-only", torch_cpu).splitlines()}
    assert undefined - defined == CUDA_SYMBOLS


def test_machine_code_and_ptx():
    """Machine code for compute capability 8.0 and 9.0, and PTX of 9.0 for what comes after, of each file of kernels."""
    listed = output_of(cuobjdump(), "-lelf", "-lptx", LIBRARY)
    assert sorted(re.findall(r"\.(sm_\w+)\.cubin", listed)) == ["sm_80"] * FILES + ["sm_90"] * FILES
    assert re.findall(r"\.(sm_\w+)\.ptx", listed) == ["sm_90"] * FILES
    assert b"sm_80 sm_90 compute_90" in LIBRARY.read_bytes(), "what the error on other devices says"


def test_kernels_keep_to_their_registers():
    """No kernel spills to local memory or uses a stack, and enough threads fit on a multiprocessor."""
    report = output_of(cuobjdump(), "-res-usage", LIBRARY)
    rows = re.findall(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", report)
    for kernel, instances in KERNELS.items():
        assert sum(kernel in name for name, *_ in rows) == 2 * instances, f"{kernel}: an instance for each architecture"
    for name, registers, stack, local in rows:
        assert (int(stack), int(local)) == (0, 0), name
        most = next(limit for pattern, limit in MOST_REGISTERS.items() if re.search(pattern, name))
        assert int(registers) <= most, f"{name}: {registers} registers"


def test_every_float_operation_is_rounded_by_itself():
    """Bit-identity with the CPU: .rn, which the assembler never fuses; nothing approximate and no fma but in a root,
    whose two fma make the approximation exact (csrc/core/macros.h; test_root.py tries every number).
    """
    ptx = output_of(cuobjdump(), "-ptx", LIBRARY)
    names = "add|sub|mul|div|sqrt|fma|mad|rcp|rsqrt|ex2|lg2|sin|cos|tanh"
    operations = re.findall(rf"^\s*(?:@!?%p\d+\s+)?((?:{names})\.[\w.]*f(?:16|32|64)\w*)", ptx, re.MULTILINE)
    root = {"rsqrt.approx.ftz.f32", "fma.rn.f32"}
    assert set(operations) == {"add.rn.f32", "sub.rn.f32", "mul.rn.f32", "div.rn.f32", "sqrt.rn.f32"} | root
    assert operations.count("fma.rn.f32") == 2 * operations.count("rsqrt.approx.ftz.f32")
    approximate = re.findall(r"^.*(?:\.ftz|\.approx|\.full|\.sat)\b.*$", ptx, re.MULTILINE)
    assert all("rsqrt.approx.ftz.f32" in line for line in approximate)


def test_the_sampler_loads_no_bytes():
    """Codes of two bytes come eight at once, or one by one at odd addresses; a byte at a time is the compiler's way out
    of an alignment that it does not know, and costs an H100 a tenth of the kernel.
    """
    ptx = output_of(cuobjdump(), "-ptx", LIBRARY)
    parts = re.split(r"^(?:\.visible )?\.entry (\w+)\(", ptx, flags=re.MULTILINE)
    kernels = {
        name: body
        for name, body in zip(parts[1::2], parts[2::2], strict=True)
        if re.search("program_(channels_last_|runs_)?kernel", name)
    }
    names = ("program_kernel", "program_channels_last_kernel", "program_runs_kernel")
    assert len(kernels) == sum(KERNELS[name] for name in names)
    loads = {
        name: set(re.findall(r"\bld((?:\.global|\.nc|\.volatile|\.v\d)*\.[a-z]\d+)\b", body))
        for name, body in kernels.items()
    }
    for name, found in loads.items():
        assert not [load for load in found if load.endswith(("u8", "s8", "b8"))], name
        if "channels_last" in name or "program_kernelILi1" in name:
            assert [load for load in found if ".v4" in load], f"{name}: eight codes in one access"


STAND_IN = """
extern "C" int aoti_torch_get_current_cuda_stream(int, void**) { return 1; }
extern "C" int torch_c10_cuda_check_msg(int, const char*, const char*, unsigned, bool, char**) { return 1; }
extern "C" void torch_c10_cuda_free_error_msg(char*) {}
"""
LOAD = """
import sys, torch
import nft_ext
assert torch.version.cuda or not torch.ops.load_library(sys.argv[1])
for name in sys.argv[2:]:
    print(name, torch._C._dispatch_has_kernel_for_dispatch_key("nft_ext::" + name, "CUDA"))
"""


def test_registers_every_operator(tmp_path):
    """Loaded in a fresh process; where torch has no CUDA, beside a stand-in for the three functions of
    libtorch_cuda.so.
    """
    environment = dict(os.environ)
    if torch.version.cuda is None:
        compiler = shutil.which(os.environ.get("CXX", "c++")) or pytest.skip(
            "a C++ compiler is needed for the stand-in"
        )
        (tmp_path / "stand_in.cpp").write_text(STAND_IN)
        output_of(
            compiler,
            "-shared",
            "-fPIC",
            "-o",
            tmp_path / "libtorch_cuda.so",
            "-Wl,-soname,libtorch_cuda.so",
            tmp_path / "stand_in.cpp",
        )
        environment["LD_LIBRARY_PATH"] = os.pathsep.join([str(tmp_path), environment.get("LD_LIBRARY_PATH", "")])
    command = [sys.executable, "-c", LOAD, str(LIBRARY), *OPERATORS]
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split("\n")[:-1] == [f"{name} True" for name in OPERATORS]
