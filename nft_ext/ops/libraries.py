"""Finds the folder of the compiled libraries: the package's own, or that of an installed copy.

`python -c "import nft_ext"` inside a checkout imports the checkout's Python files, even if a copy is installed. The
checkout may then load the libraries of the installed copy, if version and C++ and CUDA sources are the same. setup.py
records both beside the libraries, with the functions of this file. Hence this file uses the standard library alone.
"""

from __future__ import annotations

import hashlib
import json
import runpy
import sys
import warnings
from collections.abc import Sequence
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]  # the package, nft_ext
OPERATORS, CUDA_OPERATORS, RECORD = "_C.so", "_C_cuda.so", "_build.json"
BUILD = "pip install --no-build-isolation -e ."


def identity(package: Path) -> dict[str, str] | None:
    """Version and hash of the sources in a checkout; None outside a checkout.

    Args:
        package: the folder nft_ext. In a checkout, CMakeLists.txt and csrc lie beside it.
    """
    root = package.parent
    if not ((root / "CMakeLists.txt").is_file() and (root / "csrc").is_dir()):
        return None
    tests = root / "csrc" / "tests"
    compiled = [p for p in (root / "csrc").rglob("*") if p.is_file() and p.suffix != ".md" and tests not in p.parents]
    digest = hashlib.sha256()
    for path in sorted([root / "CMakeLists.txt", *compiled]):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()} {len(content)}\n".encode() + content)
    return {"version": runpy.run_path(str(package / "version.py"))["__version__"], "sources": digest.hexdigest()}


def find(package: Path = HERE, search: Sequence[str] | None = None) -> Path:
    """The folder whose libraries `package` loads.

    Libraries in `package` that were built from other sources are used with a warning.

    Args:
        package: the folder nft_ext.
        search: folders that may hold an installed nft_ext; sys.path by default.

    Raises:
        ImportError: no libraries, or none that belong to these sources. It names the folders and the command to run.
    """
    own, wanted = _complete(package), identity(package)
    if own and (wanted is None or _record(package) in (None, wanted)):
        return package
    # Resolved: the search path may name the checkout differently.
    places = dict.fromkeys((Path(entry) / "nft_ext").resolve() for entry in (sys.path if search is None else search))
    installed = [place for place in places if place != package.resolve() and _complete(place)]
    for place in installed:
        if wanted is not None and _record(place) == wanted:
            return place
    if own:
        warnings.warn(
            f"nft_ext: the libraries in {package} were built from other sources than those beside them. "
            f"Build them again: {BUILD}",
            stacklevel=2,
        )
        return package
    if wanted is None:
        raise ImportError(
            f"nft_ext: {package} holds no compiled libraries for this Python ({sys.version.split()[0]}). "
            "Install nft_ext again, from a checkout: pip install --no-build-isolation ."
        )
    if installed:
        raise ImportError(
            f"nft_ext: the source folder {package} holds no compiled libraries, and it shadows the copy "
            f"installed in {installed[0]}, which was built from {_sources(_record(installed[0]), wanted)}. "
            f"Run Python from another folder to use the installed copy, or build here: {BUILD}"
        )
    raise ImportError(
        f"nft_ext: the source folder {package} holds no compiled libraries for this Python "
        f"({sys.version.split()[0]}), and no installed copy has them. Build them here: {BUILD}"
    )


def import_core(folder: Path) -> None:
    """Imports nft_ext._core from another folder, for `from nft_ext import _core`."""
    spec = PathFinder.find_spec("nft_ext._core", [str(folder)])
    assert spec is not None and spec.loader is not None  # `find` has checked that
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    vars(sys.modules["nft_ext"])["_core"] = module


def _complete(folder: Path) -> bool:
    """Whether the folder holds the operators and the module for this Python."""
    return (folder / OPERATORS).is_file() and PathFinder.find_spec("nft_ext._core", [str(folder)]) is not None


def _record(folder: Path) -> dict[str, str] | None:
    """The `identity` at the time of the build; None without a readable record."""
    try:
        return json.loads((folder / RECORD).read_text())
    except (OSError, ValueError):
        return None


def _sources(record: dict[str, str] | None, wanted: dict[str, str]) -> str:
    if record is None:
        return "unrecorded sources"
    there, here = record.get("version"), wanted["version"]
    return f"version {there}, not {here}" if there != here else f"other C++ or CUDA sources of version {here}"
