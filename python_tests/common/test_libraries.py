"""Which compiled libraries a package loads: its own, or those of the installed copy that a checkout shadows."""

import importlib.machinery
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import nft_ext
from nft_ext.ops import build_info, libraries
from support.paths import ROOT

CORE = "_core" + importlib.machinery.EXTENSION_SUFFIXES[0]


def fill(package: Path, record: dict | None = None) -> Path:
    """Puts files where the libraries would be, and a record of what they were built from."""
    package.mkdir(parents=True, exist_ok=True)
    for name in (libraries.OPERATORS, CORE):
        (package / name).touch()
    if record is not None:
        (package / libraries.RECORD).write_text(json.dumps(record))
    return package


@pytest.fixture
def checkout(tmp_path) -> Path:
    """The folder nft_ext of a small checkout without libraries."""
    root = tmp_path / "checkout"
    for name, text in {
        "nft_ext/version.py": '__version__ = "7.0"\n',
        "CMakeLists.txt": "project(x)\n",
        "csrc/core/a.h": "int a;\n",
        "csrc/tests/t.cpp": "int t;\n",
        "csrc/README.md": "Read\n",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root / "nft_ext"


@pytest.fixture
def site(tmp_path) -> Path:
    return tmp_path / "site-packages"


def test_a_package_prefers_its_own_libraries(checkout, site):
    record = libraries.identity(checkout)
    fill(checkout, record)
    fill(site / "nft_ext", record)
    assert libraries.find(checkout, [str(checkout.parent), str(site)]) == checkout


def test_an_installed_package_asks_for_no_record(site):
    assert libraries.find(fill(site / "nft_ext"), [str(site)]) == site / "nft_ext"


def test_a_checkout_uses_the_installed_libraries_of_the_same_sources(checkout, site, tmp_path):
    fill(tmp_path / "older" / "nft_ext", {"version": "7.0", "sources": "other"})
    fill(site / "nft_ext", libraries.identity(checkout))
    search = [str(checkout.parent), str(tmp_path / "nowhere"), str(tmp_path / "older"), str(site)]
    assert libraries.find(checkout, search) == site / "nft_ext"


def test_the_checkout_is_told_under_another_name_as_well(checkout, tmp_path):
    (tmp_path / "link").symlink_to(checkout.parent)
    with pytest.raises(ImportError, match="holds no compiled libraries for this Python .* no installed copy has them"):
        libraries.find(checkout, [str(tmp_path / "link")])


@pytest.mark.parametrize(
    "record, said",
    [
        ({"version": "6.9", "sources": "?"}, "built from version 6.9, not 7.0"),
        ({"version": "7.0", "sources": "?"}, "built from other C.. or CUDA sources of version 7.0"),
        (None, "built from unrecorded sources"),
    ],
)
def test_other_installed_libraries_are_refused_by_name(checkout, site, record, said):
    fill(site / "nft_ext", record)
    match = f"{checkout} holds no compiled libraries, and it shadows the copy installed in {site}/nft_ext, which was "
    with pytest.raises(ImportError, match=f"{match}{said}.*another folder.* pip install --no-build-isolation -e"):
        libraries.find(checkout, [str(site)])


def test_libraries_for_another_python_do_not_count(checkout, site):
    fill(site / "nft_ext", libraries.identity(checkout))
    (site / "nft_ext" / CORE).rename(site / "nft_ext" / "_core.cpython-27-none.so")
    with pytest.raises(ImportError, match="no compiled libraries for this Python"):
        libraries.find(checkout, [str(site)])


def test_an_installed_package_without_libraries_says_how_to_install(site):
    (site / "nft_ext").mkdir(parents=True)
    with pytest.raises(ImportError, match="Install nft_ext again, from a checkout"):
        libraries.find(site / "nft_ext", [str(site)])


def test_own_libraries_of_other_sources_draw_a_warning_unless_the_installed_ones_fit(checkout, site):
    fill(checkout, libraries.identity(checkout))
    (checkout.parent / "csrc" / "core" / "a.h").write_text("int b;\n")
    with pytest.warns(UserWarning, match="built from other sources .* pip install --no-build-isolation -e"):
        assert libraries.find(checkout, []) == checkout
    fill(site / "nft_ext", libraries.identity(checkout))
    assert libraries.find(checkout, [str(site)]) == site / "nft_ext"


@pytest.mark.parametrize(
    "file, counts",
    [
        ("csrc/core/a.h", True),
        ("csrc/core/new.h", True),
        ("CMakeLists.txt", True),
        ("nft_ext/version.py", True),
        ("csrc/tests/t.cpp", False),
        ("csrc/README.md", False),
        ("nft_ext/device/model.py", False),
    ],
)
def test_what_a_record_holds(checkout, file, counts):
    before = libraries.identity(checkout)
    changed = checkout.parent / file
    changed.parent.mkdir(parents=True, exist_ok=True)
    changed.write_text('__version__ = "7.1"\n')
    assert (libraries.identity(checkout) != before) == counts


def test_these_libraries_were_built_from_these_sources():
    record = libraries._record(build_info.folder)
    if record is None:
        pytest.skip("the libraries were built by hand: no record lies beside them")
    wanted = libraries.identity(libraries.HERE)
    if wanted is None:
        pytest.skip("the package is installed: no sources lie beside it")
    assert record == wanted, "build the extension again"


@pytest.mark.slow
def test_a_checkout_beside_an_installed_copy_imports_and_computes(tmp_path):
    """The real package in both places: Python files and sources in the checkout, the libraries in the other alone."""
    checkout, site = tmp_path / "checkout", tmp_path / "site"
    no_libraries = shutil.ignore_patterns("*.so", libraries.RECORD, "__pycache__")
    for place in (checkout, site):
        shutil.copytree(ROOT / "nft_ext", place / "nft_ext", ignore=no_libraries)
    shutil.copytree(ROOT / "csrc", checkout / "csrc")
    shutil.copy(ROOT / "CMakeLists.txt", checkout)
    for library in build_info.folder.glob("_C*.so"):
        shutil.copy(library, site / "nft_ext")
    shutil.copy(nft_ext._core.__file__, site / "nft_ext")
    (site / "nft_ext" / libraries.RECORD).write_text(json.dumps(libraries.identity(checkout / "nft_ext")))
    code = """
import torch, nft_ext, nft_ext.montecarlo.statistics.slices
from nft_ext import _core, build_info
noisy = nft_ext.convert(torch.nn.Linear(3, 2), nft_ext.NVMDevice(sigma=0.1))
assert noisy(torch.ones(1, 3)).isfinite().all()
print(nft_ext.__file__, build_info.folder, _core.__file__, sep="\\n")
"""
    run = [sys.executable, "-c", code]
    where = os.environ | {"PYTHONPATH": str(site)}
    done = subprocess.run(run, cwd=checkout, env=where, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    package, folder, core = done.stdout.split()
    assert Path(package).parent == checkout / "nft_ext"
    assert Path(folder) == Path(core).parent == site / "nft_ext"
    (checkout / "csrc" / "core" / "philox.h").write_text("// another source\n")
    refused = subprocess.run(run, cwd=checkout, env=where, check=False, capture_output=True, text=True)
    assert refused.returncode == 1 and "other C++ or CUDA sources of version" in refused.stderr


def test_the_operators_ask_torch_for_c_functions_of_its_stable_abi_alone():
    """So that one binary serves every torch from 2.11 on: a C++ symbol of torch would bind it to one version."""
    nm = shutil.which("nm") or pytest.skip("nm was not found; run: sudo apt-get install binutils")
    listed = subprocess.run(
        [nm, "-D", "--undefined-only", build_info.folder / libraries.OPERATORS],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    undefined = [line.split()[-1] for line in listed.splitlines() if line.split()[0] == "U"]
    torchs = {name for name in undefined if "@" not in name}  # the C and C++ libraries' names end with their version
    assert "torch_call_dispatcher" in torchs
    assert not {name for name in torchs if not name.startswith(("torch_", "aoti_torch_"))}
