"""The layers of nft_ext: a folder imports lower folders only (docs/design/architecture.md draws them)."""

import ast
from pathlib import Path

import pytest

from support.paths import ROOT

PACKAGE = ROOT / "nft_ext"
# A folder -> the folders that it may import, beside itself, _common, version.py and the compiled modules.
MAY_IMPORT = {
    "_common": [],
    "device": [],
    "ops": ["device"],
    "nn": ["device", "ops"],
    "metrics": [],
    "models": [],
    "data": [],
    "methods": ["device", "ops", "nn"],
    "training": ["device", "ops", "nn", "models", "data", "methods"],
    "montecarlo": ["device", "ops", "nn", "metrics"],
    "montecarlo/statistics": ["ops", "metrics"],
    "montecarlo/report": ["montecarlo/statistics"],
    "montecarlo/distributed": ["montecarlo/statistics"],
    "montecarlo/execution": ["montecarlo/statistics", "montecarlo/distributed", "ops", "nn"],
}
ANYWHERE = {"_common", "version", "_core", "_C"}
ON_TOP = {"cli", "reproduce"}  # may import every folder


def layer(parts: tuple[str, ...]) -> str:
    """The folder of MAY_IMPORT that holds a module, from its parts below nft_ext; else its first part."""
    return next(("/".join(parts[:n]) for n in (2, 1) if "/".join(parts[:n]) in MAY_IMPORT), parts[0] if parts else "")


def imported(path: Path) -> set[tuple[str, ...]]:
    """The modules of nft_ext that a file imports, as parts below nft_ext."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {tuple(a.name.split(".")[1:]) for a in node.names if a.name.split(".")[0] == "nft_ext"}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "nft_ext":
            base = tuple(str(node.module).split(".")[1:])
            found |= {base} if base else {(a.name,) for a in node.names}
    return found


@pytest.mark.parametrize("folder", sorted(MAY_IMPORT))
def test_a_folder_imports_lower_folders_only(folder):
    allowed = ANYWHERE | {folder, *MAY_IMPORT[folder]}
    if folder == "montecarlo":
        allowed |= {name for name in MAY_IMPORT if name.startswith("montecarlo/")}
    files = [p for p in (PACKAGE / folder).rglob("*.py") if layer(p.relative_to(PACKAGE).parts[:-1]) == folder]
    assert files
    wrong = {str(p.relative_to(ROOT)): sorted({layer(m) for m in imported(p)} - allowed) for p in files}
    assert not {path: found for path, found in wrong.items() if found}


def test_the_map_names_every_folder():
    folders = {p.relative_to(PACKAGE).as_posix() for p in PACKAGE.rglob("*") if any(p.glob("*.py"))} - ON_TOP
    assert folders == set(MAY_IMPORT)


def test_an_upward_import_is_found(tmp_path):
    (tmp_path / "layer.py").write_text("import nft_ext.training.loop\nfrom nft_ext import data\n")
    assert {layer(parts) for parts in imported(tmp_path / "layer.py")} == {"training", "data"}
