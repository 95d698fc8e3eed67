"""Imports point one way: no module leads back to itself, and no room imports one above it.

Every import counts, also those inside functions and those for type checkers only.
"""

import ast
from pathlib import Path

import nft_ext

PACKAGE = Path(nft_ext.__file__).parent

# A room imports rooms of the rows above its own. Rooms of one row do not know each other.
LAYERS = (
    ("_common", "version", "reference"),
    ("device", "data", "metrics", "models"),
    ("ops",),
    ("nn", "montecarlo.statistics"),
    ("methods", "montecarlo.distributed", "montecarlo.report"),
    ("montecarlo.execution",),
    ("montecarlo", "training"),
    ("reproduce", "demo"),
    ("cli",),
    ("",),  # the package itself
)
ROWS = {room: row for row, rooms in enumerate(LAYERS) for room in rooms}
EXTENSIONS = ("_core",)  # compiled modules: they import nothing


def modules_of(package):
    """Name in the package ("" for itself) -> file."""
    found = {}
    for file in package.rglob("*.py"):
        parts = file.relative_to(package).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imports_of(name, modules, package):
    """The modules of `package` that the module `name` imports, wherever the import stands in it."""
    inside = name if modules[name].name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(modules[name].read_text())):
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


def circle(graph):
    """A way that leads back to where it began, None where there is none."""
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


def room_of(name):
    """The longest prefix of the name that is in the table."""
    while name and name not in ROWS:
        name = name.rpartition(".")[0]
    return name


def graph():
    modules = modules_of(PACKAGE)
    return {name: imports_of(name, modules, "nft_ext") for name in modules}


def test_no_import_leads_back():
    assert circle(graph()) is None


def test_no_room_imports_one_above_it():
    upward = [
        f"{name} imports {other}"
        for name, others in graph().items()
        for other in sorted(others)
        if room_of(name) != room_of(other) and ROWS[room_of(other)] >= ROWS[room_of(name)]
    ]
    assert not upward, "\n".join(upward)


def test_every_module_has_a_room():
    modules = modules_of(PACKAGE)
    assert {name for name in modules if name and room_of(name) == ""} == set()
    assert set(ROWS) - {""} <= set(modules)


def test_the_package_imports_neither_tests_nor_benchmarks():
    found = [
        f"{name}: {line}"
        for name, file in modules_of(PACKAGE).items()
        for line in file.read_text().splitlines()
        if line.split()[:1] in (["from"], ["import"])
        and line.split()[1].partition(".")[0] in ("bench", "python_tests", "support")
    ]
    assert not found


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
