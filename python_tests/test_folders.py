"""The order of the tests: folders mirror the code, shared helpers are in support/, no test imports another."""

import re
from pathlib import Path

import pytest

from support.paths import ROOT, TESTS

HELPERS = {"support", "files"}
IMPORT = re.compile(r"\b(?:from|import)\s+(?:\w+\.)*(?:test_\w+|conftest)\b")  # in code that a string holds, too


def folders(path: Path) -> set[str]:
    """Names of the folders at `path` that hold something, without leading underscores."""
    return {
        p.name.lstrip("_") for p in path.iterdir() if p.is_dir() and p.name != "__pycache__" and any(p.rglob("*.*"))
    }


def importers(path: Path) -> list[str]:
    return [str(p.relative_to(path)) for p in path.rglob("*.py") if IMPORT.search(p.read_text(encoding="utf-8"))]


@pytest.mark.parametrize(
    "line",
    [
        "from test_fusion import conv",
        "import python_tests.nn.test_fusion",
        "import sys; import test_fusion as t",
        "from conftest import threads",
    ],
)
def test_an_import_of_a_test_is_found(tmp_path, line):
    (tmp_path / "test_cascade.py").write_text(f'CODE = """{line}"""\n')
    (tmp_path / "test_other.py").write_text("from support.fusable import conv\n")
    assert importers(tmp_path) == ["test_cascade.py"]


def test_no_file_imports_a_test():
    assert [name for name in importers(TESTS) if name != Path(__file__).name] == [] == importers(ROOT / "bench")


def test_every_folder_mirrors_one_of_the_code():
    code = folders(ROOT / "nft_ext") | folders(ROOT / "csrc") | {"csrc", "bench", "docs", "examples", "stacks"}
    assert folders(TESTS) - HELPERS <= code


def test_every_test_is_in_a_folder():
    assert [p.name for p in TESTS.glob("test_*.py")] == [Path(__file__).name]
    assert not [p for name in HELPERS for p in (TESTS / name).rglob("test_*.py")]
