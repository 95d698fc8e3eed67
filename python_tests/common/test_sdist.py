"""An sdist holds what a build needs, and states the package's one version."""

import subprocess
import sys
import tarfile

import pytest

import nft_ext as nft
from support.paths import ROOT


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """Path inside the sdist -> content."""
    out = tmp_path_factory.mktemp("sdist")
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", out, "sdist", "--dist-dir", out]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with tarfile.open(next(out.glob("*.tar.gz"))) as archive:
        return {
            member.name.split("/", 1)[1]: archive.extractfile(member).read()
            for member in archive.getmembers()
            if member.isfile()
        }


def test_it_holds_all_sources_and_the_licence(sdist):
    sources = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "csrc").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    package = {path.relative_to(ROOT).as_posix() for path in (ROOT / "nft_ext").rglob("*.py")}
    others = {
        "CMakeLists.txt",
        "setup.py",
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "nft_ext/py.typed",
        "nft_ext/reproduce/published.json",
    }
    assert not (sources | package | others) - sdist.keys()


def test_it_holds_nothing_compiled_and_no_python_tests(sdist):
    assert not [name for name in sdist if name.endswith((".so", ".pyc", "_build.json")) or "python_tests" in name]


def test_it_states_the_version_and_the_licence(sdist):
    metadata = sdist["PKG-INFO"].decode().splitlines()
    assert f"Version: {nft.__version__}" in metadata and "License-Expression: MIT" in metadata
