"""The layers of nft_ext: a folder imports lower folders only (docs/design/architecture.md draws them), and no import
leads back to where it began.

Every import counts, also those inside functions and those for type checkers only.
"""

import ast

import pytest

from support.paths import ROOT

# A folder -> the folders that it may import, beside itself and ANYWHERE.
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
    "montecarlo.statistics": ["ops", "metrics"],
    "montecarlo.report": ["montecarlo.statistics"],
    "montecarlo.distributed": ["montecarlo.statistics"],
    "montecarlo.tasks": ["montecarlo.statistics", "metrics", "nn"],
    "montecarlo.execution": ["montecarlo.statistics", "montecarlo.distributed", "montecarlo.tasks", "ops", "nn"],
    "montecarlo": [
        "montecarlo.statistics",
        "montecarlo.report",
        "montecarlo.distributed",
        "montecarlo.execution",
        "montecarlo.tasks",
        "device",
        "ops",
        "nn",
        "metrics",
    ],
}
ANYWHERE = {"_common", "version"}
ON_TOP = {"", "cli", "demo", "reproduce"}  # may import every folder
ALONE = {"reference", "version"}  # import nothing of the package
EXTENSIONS = {"_core", "_C", "_C_cuda"}  # compiled modules


def modules_of(package):
    """Names of the package's modules ("" for the package itself) and their files."""
    found = {}
    for file in package.rglob("*.py"):
        parts = file.relative_to(package).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imports_of(name, modules, package):
    """The modules of the package called `package` that its module `name` imports, wherever the import stands in it."""
    inside = name if modules[name].name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(modules[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parts = [package, *filter(None, inside.split("."))]
            parts = parts[: len(parts) + 1 - node.level] if node.level else []
            base = ".".join([*parts, *filter(None, [node.module])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for full in names:
            if full != package and not full.startswith(package + "."):
                continue
            own = full.removeprefix(package).lstrip(".")
            while own not in modules and own not in EXTENSIONS:  # a name in a module
                own = own.rpartition(".")[0]
            found.add(own)
    return found - {name, *EXTENSIONS}


def layer(name):
    """The folder of MAY_IMPORT that holds a module; else its first part."""
    parts = name.split(".")
    return next((".".join(parts[:n]) for n in (2, 1) if ".".join(parts[:n]) in MAY_IMPORT), parts[0])


def circle(graph):
    """A way that leads back to where it began; None where there is none."""
    done, way = set(), []

    def visit(node):
        if node in way:
            return [*way[way.index(node) :], node]
        if node in done:
            return None
        way.append(node)
        for other in sorted(graph[node]):
            if (found := visit(other)) is not None:
                return found
        way.pop()
        done.add(node)
        return None

    return next((found for node in sorted(graph) if (found := visit(node)) is not None), None)


@pytest.fixture(scope="module")
def graph():
    """Module -> the modules that it imports."""
    modules = modules_of(ROOT / "nft_ext")
    return {name: imports_of(name, modules, "nft_ext") for name in modules}


def test_no_import_leads_back(graph):
    assert circle(graph) is None
    folders = {layer(name): set() for name in graph}
    for name, others in graph.items():
        folders[layer(name)] |= {layer(other) for other in others} - {layer(name)}
    assert circle(folders) is None


@pytest.mark.parametrize("folder", sorted(MAY_IMPORT))
def test_a_folder_imports_lower_folders_only(folder, graph):
    allowed = ANYWHERE | {folder, *MAY_IMPORT[folder]}
    modules = [name for name in graph if layer(name) == folder]
    assert modules
    wrong = {name: sorted({layer(other) for other in graph[name]} - allowed) for name in modules}
    assert not {name: found for name, found in wrong.items() if found}


def test_modules_that_stand_alone_import_nothing(graph):
    assert not {name: graph[name] for name in ALONE if graph[name]}


def test_the_table_names_every_folder_and_module(graph):
    assert {layer(name) for name in graph} == {*MAY_IMPORT, *ON_TOP, *ALONE}


def test_the_package_imports_neither_tests_nor_benchmarks():
    files = (ROOT / "nft_ext").rglob("*.py")
    lines = [(file, line.split()) for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    found = [(file, words) for file, words in lines if words[:1] in (["from"], ["import"])]
    assert not [file for file, words in found if words[1].partition(".")[0] in ("bench", "python_tests", "support")]


def test_circles_are_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) is None


def test_imports_are_found_wherever_they_stand(tmp_path):
    package = tmp_path / "house"
    (package / "room").mkdir(parents=True)
    for name in ("__init__", "low", "room/__init__", "room/a"):
        (package / f"{name}.py").touch()
    (package / "room" / "b.py").write_text("""
import house.low
from .a import something
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from .. import room

def later():
    from house import name, _core
""")
    modules = modules_of(package)
    assert set(modules) == {"", "low", "room", "room.a", "room.b"}
    assert imports_of("room.b", modules, "house") == {"", "low", "room", "room.a"}
