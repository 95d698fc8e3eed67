"""Finds the folder of the compiled libraries: the package's own, or that of the installed copy it shadows.

`python -c "import nft_ext"` inside a checkout imports the checkout's Python files, whether or not a copy is installed.
The checkout may then use the libraries of the installed copy, but only if both have the same version and the same C++
and CUDA sources. setup.py writes a record of both beside the libraries and runs this file for it. Hence this file uses
the standard library alone.
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
    """Version and hash of the sources in a checkout; None where `package` lies in no checkout.

    package: the folder nft_ext, beside which a checkout has CMakeLists.txt and csrc.
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

    search: folders that may hold an installed nft_ext; sys.path by default.

    Raises ImportError (names the folders and the command that mends it) if there are no libraries, or none that
    belong to these sources. Own libraries that were built from other sources are used, with a warning.
    """
    own, wanted = _complete(package), identity(package)
    if own and (wanted is None or _record(package) in (None, wanted)):
        return package
    # Resolved, since the search path may hold the checkout by another name.
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
            f"installed in {installed[0]}, which was built from {_said(_record(installed[0]), wanted)}. "
            f"Run Python from another folder to use the installed copy, or build here: {BUILD}"
        )
    raise ImportError(
        f"nft_ext: the source folder {package} holds no compiled libraries for this Python "
        f"({sys.version.split()[0]}), and no installed copy has them. Build them here: {BUILD}"
    )


def import_core(folder: Path) -> None:
    """Imports nft_ext._core from a folder that is not the package's, so that `from nft_ext import _core` finds it."""
    spec = PathFinder.find_spec("nft_ext._core", [str(folder)])
    assert spec is not None and spec.loader is not None  # `find` has seen it
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    vars(sys.modules["nft_ext"])["_core"] = module


def _complete(folder: Path) -> bool:
    """Whether the folder holds the operators, and the Python module for this Python."""
    return (folder / OPERATORS).is_file() and PathFinder.find_spec("nft_ext._core", [str(folder)]) is not None


def _record(folder: Path) -> dict[str, str] | None:
    """What `identity` said when the folder's libraries were built; None if nothing readable was written."""
    try:
        return json.loads((folder / RECORD).read_text())
    except (OSError, ValueError):
        return None


def _said(record: dict[str, str] | None, wanted: dict[str, str]) -> str:
    if record is None:
        return "sources that it holds no record of"
    there, here = record.get("version"), wanted["version"]
    return f"version {there}, not {here}" if there != here else f"other C++ or CUDA sources of version {here}"
