"""The text of the repository: lines of at most 120 columns in Markdown, and no path to a file that does not exist.

Markdown, comments and docstrings are read, and the messages of the package.
"""

import ast
import functools
import io
import pkgutil
import re
import subprocess
import tokenize

import pytest

from nft_ext._common.moved import MOVED
from support.paths import ROOT

WIDTH = 120
WIDEST_ROW = 200  # a row of a table cannot be broken
PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "bench/README.md", "csrc/README.md", "docs/**/*.md"]
FOLDERS = "nft_ext|csrc|python_tests|bench|examples|docs|tools"
PATH = re.compile(rf"(?<![\w./-])(?:{FOLDERS})/[\w./*-]*[\w/*]")
MODULE = re.compile(r"(?<![\w./-])nft_ext(?:\.[A-Za-z_]\w*)+(?![\w./-])")
NOT_HERE = re.compile(r"\(design,|design,? section|design\.md")
MADE = re.compile(r"nft_ext/(_C|_C_cuda|_core)\.so|nft_ext/_build\.json")  # by the build
THIS = "python_tests/docs/test_text.py"


def pages():
    return sorted({p for pattern in PAGES for p in ROOT.glob(pattern)})


# ---- columns


def too_long(text):
    """(line, columns) of every line that is too long. Outside of code a line without a place to break may be longer."""
    found, fenced = [], False
    for number, line in enumerate(text.split("\n"), 1):
        fenced ^= line.startswith("```")
        width = WIDEST_ROW if line.startswith("|") and not fenced else WIDTH
        without_link = re.sub(r"!?\[[^\]]*\](\([^)]*\)|:\s*)", "", line.strip().removeprefix("- "))
        if len(line) > width and (fenced or " " in without_link):
            found.append((number, len(line)))
    return found


@pytest.mark.parametrize("page", pages(), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_lines_fit(page):
    assert too_long(page.read_text(encoding="utf-8")) == []


def test_a_long_line_is_found():
    words, link = "word " * 30, f"- [a link]({'x' * 130})"
    assert too_long(f"{words}\n{link}\n| {words}|\n```sh\n{words}\n```") == [(1, 150), (5, 150)]
    assert too_long(f"| {words * 2}|") == [(1, 303)]


# ---- paths


def python_text(source):
    """Comments and docstrings."""
    found = [t.string for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type == tokenize.COMMENT]
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = ast.walk(ast.parse(source))
    return "\n".join(found + [ast.get_docstring(n, clean=False) or "" for n in nodes if isinstance(n, documented)])


def paths_in_strings(source):
    """One line each, as messages and help texts name them."""
    nodes = ast.walk(ast.parse(source))
    strings = (n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str))
    return "\n".join(path for string in strings for path in PATH.findall(string))


def cpp_text(source):
    """Comments."""
    return "\n".join(re.findall(r"//[^\n]*|/\*.*?\*/", source, re.DOTALL))


def hash_text(source):
    """Comments of CMake, TOML and lists."""
    return "\n".join(re.findall(r"#.*", source))


READ = {
    ".md": str,
    ".py": python_text,
    **dict.fromkeys((".h", ".inl", ".cpp", ".cu"), cpp_text),
    **dict.fromkeys((".cmake", ".toml", ".txt"), hash_text),
}


@functools.cache
def texts():
    """Name -> what a reader reads in it, of every file of the repository."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("needs git's list of files")
    found = {}
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if path.suffix in READ and path.is_file() and name != THIS:
            source = path.read_text(encoding="utf-8")
            found[name] = READ[path.suffix](source)
            if name.startswith("nft_ext/") and path.suffix == ".py":
                found[name] += "\n" + paths_in_strings(source)
    return found


@functools.cache
def path_exists(path):
    """A file, a folder, a pattern that matches, or a file without its ending."""
    return MADE.fullmatch(path) or any(ROOT.glob(path)) or any(ROOT.glob(f"{path}.*"))


def name_exists(name):
    if any(name == old or name.startswith(f"{old}.") for old in MOVED):
        return False
    try:
        return pkgutil.resolve_name(name) is not None
    except (ImportError, AttributeError):
        return False


def dead(text):
    """The paths and dotted names of `text` that do not exist. NAME and ... stand for a reader's own."""
    paths = {p.rstrip("/") for p in PATH.findall(text) if "NAME" not in p and ".." not in p}
    names = set(MODULE.findall(text))
    return sorted({p for p in paths if not path_exists(p)} | {n for n in names if not name_exists(n)})


def test_every_path_in_a_text_exists():
    found = [f"{name}: {path}" for name, text in texts().items() for path in dead(text)]
    assert not found, "\n" + "\n".join(found)


def test_a_dead_path_is_found():
    text = "see csrc/core/philox.h, csrc/core/gone.h, docs/gone.md, nft_ext/nn/, nft_ext.nn.gone and nft_ext.nn.fusion"
    assert dead(text) == ["csrc/core/gone.h", "docs/gone.md", "nft_ext.nn.gone"]
    assert dead("nft_ext.layers.base, csrc/*/philox.h, csrc/*/gone.h") == ["csrc/*/gone.h", "nft_ext.layers.base"]


def test_no_text_cites_a_document_that_is_not_here():
    found = [f"{name}: {cited[0]}" for name, text in texts().items() if (cited := NOT_HERE.search(text))]
    assert not found, "\n" + "\n".join(found)
