"""Builds the compiled libraries with CMake and Ninja: pip install --no-build-isolation .

NFT_EXT_CUDA=0|1|auto: whether to build the CUDA library (auto: if nvcc works). NFT_EXT_TESTS=1: also build the native
tests.
"""

import importlib.util
import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import setuptools
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
MEND = {
    "setuptools >= 77": 'pip install "setuptools>=77"',
    "torch": 'pip install "torch>=2.11" --index-url https://download.pytorch.org/whl/cpu   (or any CUDA build of it)',
    "pybind11": "pip install pybind11",
    "cmake": "pip install cmake",
    "ninja": "pip install ninja",
}


def missing(what: str) -> NoReturn:
    sys.exit(
        f"nft_ext: the build needs {what}, which is not in this environment; run: {MEND[what]}\n"
        "and then: pip install --no-build-isolation ."
    )


def tool(name):
    """Path of a build tool, from this environment or else from PATH."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else shutil.which(name) or missing(name)


class FreshBuild(build_py):
    """setuptools copies into build/lib and never deletes: a module deleted since would get into the wheel."""

    def run(self):
        if not self.editable_mode:
            shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


class CMakeBuild(build_ext):
    """Runs CMake and writes the record that nft_ext/ops/libraries.py compares."""

    def run(self):
        torch = importlib.util.find_spec("torch")  # found, not imported: only its folder is needed
        if torch is None or torch.origin is None:
            missing("torch")
        if importlib.util.find_spec("pybind11") is None:
            missing("pybind11")
        import pybind11

        compiler = os.environ.get("CXX", "c++")
        if shutil.which(compiler) is None:
            sys.exit(
                f"nft_ext: the build needs a C++17 compiler, and {compiler} was not found; "
                "run: sudo apt-get install g++"
            )
        in_place = self.inplace or getattr(self, "editable_mode", False)
        output = ROOT / "nft_ext" if in_place else Path(self.build_lib).resolve() / "nft_ext"
        for old in output.glob("_C*.so"):  # for example a CUDA library that this build omits
            old.unlink()
        libraries = runpy.run_path(str(ROOT / "nft_ext" / "ops" / "libraries.py"))
        record = libraries["identity"](ROOT / "nft_ext")  # before compiling, to notice sources that change meanwhile
        build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
        configure = [
            tool("cmake"),
            "-S",
            str(ROOT),
            "-B",
            str(build),
            "-G",
            "Ninja",
            f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}",
            f"-DNFT_EXT_TORCH={Path(torch.origin).parent}",
            "-DNFT_EXT_PYTHON=ON",
            f"-DNFT_EXT_TESTS={os.environ.get('NFT_EXT_TESTS', '0')}",
            f"-DNFT_EXT_CUDA={os.environ.get('NFT_EXT_CUDA', 'auto')}",
            f"-DNFT_EXT_OUTPUT={output}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        ]
        for command in (configure, [tool("cmake"), "--build", str(build)]):
            if subprocess.run(command, check=False).returncode != 0:
                sys.exit(f"nft_ext: this build step failed, see its messages above: {' '.join(command)}")
        (output / libraries["RECORD"]).write_text(json.dumps(record, indent=1) + "\n")

    def get_outputs(self):
        return []

    def get_output_mapping(self):
        return {}


if int(setuptools.__version__.split(".")[0]) < 77:  # without build isolation pip does not check this
    missing("setuptools >= 77")
setup(ext_modules=[Extension("nft_ext._core", sources=[])], cmdclass={"build_py": FreshBuild, "build_ext": CMakeBuild})
