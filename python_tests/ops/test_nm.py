"""What the compiler made of the sampler: one object an instruction set that cannot leak into another, and no fma in the
noise.

A weak symbol compiled for AVX-512 could be chosen by the linker for everybody, an illegal instruction on another
machine; a fused multiply-add rounds once where the noise is defined to round twice.
"""

import os
import platform
import re
import shutil
import subprocess

import pytest

from support.paths import ROOT

COMPILER = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
GUARDS = {
    "__stack_chk_fail",
    "__memcpy_chk",
    "__memset_chk",
    "_GLOBAL_OFFSET_TABLE_",
}  # some distributions' compilers add them
FMA = re.compile(r"\bv?fn?m(add|sub)\w*")
QUOTIENTS = (
    "fresh_chunk",
    "reciprocal_of",
    "fresh_run",
)  # csrc/cpu/sampler/step_reciprocal.h: codes by fused multiply-adds, proven to be the division's

pytestmark = [
    pytest.mark.skipif(
        platform.machine().lower() not in ("x86_64", "amd64"), reason="only x86-64 has several instruction sets"
    ),
    pytest.mark.skipif(not COMPILER or not shutil.which(COMPILER), reason="needs a C++ compiler (c++, g++ or CXX)"),
    pytest.mark.skipif(not shutil.which("nm") or not shutil.which("objdump"), reason="needs nm and objdump (binutils)"),
    pytest.mark.skipif(not (ROOT / "CMakeLists.txt").exists(), reason="needs the sources beside the tests"),
]


def cmake_flags():
    """{instruction set: compiler flags}, read from CMakeLists.txt."""
    text = (ROOT / "CMakeLists.txt").read_text()
    common = re.search(r"set\(NFT_ROUNDING ([^)]*)\)", text)[1].split()
    assert "-ffp-contract=off" in common and "-fno-math-errno" in common
    assert "-ffast-math" not in text and "-Ofast" not in text and "-march" not in text
    own = re.findall(r'csrc/cpu/sampler/sampler_(\w+)\.cpp PROPERTIES COMPILE_OPTIONS\s+"([^"]*)"', text)
    return {"scalar": common} | {isa: common + flags.split(";") for isa, flags in own}


@pytest.fixture(scope="module")
def objects(tmp_path_factory):
    """{instruction set: object file}, compiled afresh as CMake would."""
    folder = tmp_path_factory.mktemp("objects")
    started = {}
    for isa, flags in cmake_flags().items():
        source, target = ROOT / "csrc" / "cpu" / "sampler" / f"sampler_{isa}.cpp", folder / f"{isa}.o"
        command = [
            COMPILER,
            "-std=c++17",
            "-O3",
            "-fPIC",
            "-fvisibility=hidden",
            "-w",
            "-I",
            ROOT / "csrc",
            *flags,
            "-c",
            source,
            "-o",
            target,
        ]
        started[isa] = (target, subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
    for _, process in started.values():
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    return {isa: target for isa, (target, _) in started.items()}


ISAS = ["scalar", "avx2", "avx512"]


def test_cmake_builds_these_instruction_sets():
    assert list(cmake_flags()) == ISAS


@pytest.mark.slow  # the fixture compiles
@pytest.mark.parametrize("isa", ISAS)
def test_no_weak_symbols_and_nothing_from_elsewhere_but_memory_functions(objects, isa):
    listing = subprocess.run(["nm", objects[isa]], capture_output=True, text=True, check=True).stdout
    symbols = [line.split()[-2:] for line in listing.splitlines()]
    assert [name for kind, name in symbols if kind in "WwVvu"] == []
    assert {name for kind, name in symbols if kind == "U"} - GUARDS <= {"memcpy", "memset"}
    visible = [name for kind, name in symbols if kind.isupper() and kind != "U"]
    assert len(visible) == 1 and isa in visible[0] and "table" in visible[0]


@pytest.mark.slow
@pytest.mark.parametrize("isa", ISAS)
def test_its_own_instructions_and_no_fma_but_in_quotients(objects, isa):
    code = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", objects[isa]], capture_output=True, text=True, check=True
    ).stdout
    functions = re.split(r"^[0-9a-f]+ (?=<.*>:$)", code, flags=re.MULTILINE)
    fused = [body.split(">:")[0] for body in functions if FMA.search(body)]
    assert "mul" in code and [name for name in fused if not any(quotient in name for quotient in QUOTIENTS)] == []
    assert bool(fused) == (isa != "scalar")
    assert ("%zmm" in code) == (isa == "avx512")
    assert ("%ymm" in code) == (isa != "scalar")


def test_the_pattern_finds_fused_instructions():
    for name in ("vfmadd213ps", "vfnmadd132ss", "vfmsub231pd", "vfmaddsub132ps", "fmadd"):
        assert FMA.search(f"  1a:\t{name} %xmm0,%xmm1,%xmm2")
    assert not FMA.search("  1a:\tvmulps %zmm0,%zmm1,%zmm2\n vaddps")
