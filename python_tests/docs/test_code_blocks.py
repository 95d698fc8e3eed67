"""Every code block of README and docs: Python runs, prints what the page shows, and every command in it exists.

The Python blocks of a page run in order, in one namespace and a temporary folder. HTML comments on the page, which no
reader sees, steer this:

    <!-- setup CODE -->        CODE runs at this place
    <!-- figures vary -->      of the `text` block below, the words are compared and the numbers are not
    <!-- needs cuda -->        the Python block below runs where CUDA is available, and is compiled elsewhere
    <!-- needs PACKAGE -->     the same, where the package is installed; several such comments add up

A `text` block directly after a Python block shows what that block prints; `...` in it stands for anything.
"""

import contextlib
import doctest
import importlib
import importlib.util
import io
import pkgutil
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import nft_ext.cli

ROOT = Path(__file__).parents[2]
RUN_ELSEWHERE = {"noise.md": "test_noise.py", "methods.md": "test_methods.py"}  # those tests look closer
SLOW = {"quickstart.md", "training.md"}  # they train, for some seconds
# What pages assume that have no setup of their own.
SETUP = {
    "README.md": """
import torch
from torch import nn
import nft_ext as nft
model, other = (nn.Sequential(nn.Flatten(), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)) for _ in range(2))
nvm = nft.NVMDevice(sigma=0.1)
other = nft.convert(other, nvm)
images = torch.randn(64, 1, 4, 4)
test_set = train = validation = images, model(images).argmax(1)
x, target = images[:8], test_set[1][:8]
""",
    "metrics.md": """
import torch
from torch import nn
import nft_ext as nft
noisy = nft.convert(nn.Linear(16, 4), nft.NVMDevice(sigma=0.2))
test = validation = torch.randn(64, 16), torch.randint(4, (64,))
""",
}

MARK = re.compile(r"<!-- (setup\b|figures vary|needs \w+)(.*?)-->", re.DOTALL)
FENCE = re.compile(r"^```(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PIECE = re.compile(rf"{MARK.pattern}|{FENCE.pattern}", re.MULTILINE | re.DOTALL)


def pages():
    found = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "bench").glob("*.md")]
    return sorted(found)


@dataclass
class Block:
    kind: str  # setup, python, text, sh or what else the page says
    text: str
    line: int  # of the page, where `text` begins
    marks: tuple[str, ...] = ()
    follows: str = ""  # kind of the block before it, where only white space lies between


def blocks(page):
    """The blocks of a page, in order."""
    content = page.read_text()
    found, marks, end = [], (), 0
    for match in PIECE.finditer(content):
        mark, code, language, text = match.groups()
        adjacent = not content[end : match.start()].strip()
        end = match.end()
        if mark and mark != "setup":
            marks = (*marks, mark)
            continue
        kind, text, start = ("setup", code, match.start(2)) if mark else (language or "sh", text, match.start(4))
        before = found[-1].kind if found and adjacent else ""
        found.append(Block(kind, text, content.count("\n", 0, start) + 1, marks, before))
        marks = ()
    return found


def name_of(page):
    return page.relative_to(ROOT).as_posix()


def with_code(page):
    return page.name not in RUN_ELSEWHERE and any(block.kind == "python" for block in blocks(page))


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


WITH_CODE = [
    pytest.param(page, marks=pytest.mark.slow if page.name in SLOW else (), id=name_of(page))
    for page in pages()
    if with_code(page)
]


@pytest.mark.parametrize("page", WITH_CODE)
@pytest.mark.filterwarnings("ignore:sigma. the paper's range")
def test_python_blocks(page, tmp_path, monkeypatch, one_thread):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names, printed = {"__name__": "page"}, ""
    exec(SETUP.get(page.name, ""), names)
    for block in blocks(page):
        if block.kind in ("setup", "python"):
            printed = None  # of a block that does not run here
            code = compile("\n" * (block.line - 1) + block.text, str(page), "exec")
            if "needs cuda" in block.marks and not torch.cuda.is_available():
                continue
            packages = [mark.split()[1] for mark in block.marks if mark.startswith("needs ") and mark != "needs cuda"]
            if not all(map(importlib.util.find_spec, packages)):
                continue
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(code, names)
            printed = out.getvalue()
        elif block.kind == "text" and block.follows == "python" and printed is not None:
            assert_printed(printed, block, page)


def assert_printed(printed, block, page):
    shown = block.text
    if "figures vary" in block.marks:
        shown, printed = masked(shown), masked(printed)
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    if not doctest.OutputChecker().check_output(shown, printed, options):
        pytest.fail(f"{name_of(page)}, line {block.line}: the block above prints\n{printed}")


def masked(text):
    """`text` with every number as #, and without the star that marks a best row."""
    return re.sub(r"[-+]?\d[\d.,]*(e[-+]?\d+)?", "#", text).replace("*", " ")


# ---- commands


def commands(page):
    """(line of the page, command) of every shell block, continued lines joined, comments and prompts gone."""
    for block in blocks(page):
        if block.kind not in ("sh", "bash"):
            continue
        line = block.line
        for command in re.findall(r"(?:.*\\\n)*.*\n?", block.text):
            yield line, re.sub(r"(^|\s)#.*", "", command.replace("\\\n", " ")).strip()
            line += command.count("\n")


@pytest.fixture
def command_line(monkeypatch):
    """The real argument parser, in front of commands that do nothing."""
    for module in pkgutil.iter_modules(nft_ext.cli.__path__):
        command = importlib.import_module(f"nft_ext.cli.{module.name}") if module.name != "__main__" else None
        if hasattr(command, "add_parser"):
            monkeypatch.setattr(command, "run", lambda arguments: 0)
    return nft_ext.cli.main


def help_of(main, command):
    with contextlib.redirect_stdout(io.StringIO()) as out, pytest.raises(SystemExit):
        main([command, "--help"])
    return out.getvalue()


PAGES_WITH_COMMANDS = [page for page in pages() if any(command for _, command in commands(page))]


@pytest.mark.parametrize("page", PAGES_WITH_COMMANDS, ids=name_of)
def test_commands_exist(page, command_line, capsys):
    for line, command in commands(page):
        place = f"{name_of(page)}, line {line}: {command}"
        if found := re.search(r"\bnft-ext\s+([^'|>;&]*)", command):
            words = shlex.split(found[1])
            argv = [word for word in words if word != "..."]
            if argv[1:] == [] != words[1:]:  # `nft-ext train ...`
                help_of(command_line, argv[0])
                continue
            if "[-" in command:  # a synopsis: its options are known
                unknown = set(re.findall(r"--[\w-]+", found[1])) - set(
                    re.findall(r"--[\w-]+", help_of(command_line, argv[0]))
                )
                assert not unknown, f"{place}: no such options {unknown}"
                continue
            try:
                status = command_line(argv)
            except SystemExit as stop:
                status = stop.code
            assert status == 0, f"{place}: {capsys.readouterr().err}"
        words = shlex.split(command)
        if words[:1] == ["make"]:
            targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            assert not (wrong := [w for w in words[1:] if "=" not in w and w not in targets]), (
                f"{place}: no targets {wrong}"
            )
        for script in re.findall(r"\bpython3? (?:-m )?((?:bench|examples|docs)[./]\S+)", command):
            path = script if script.endswith(".py") else script.replace(".", "/") + ".py"
            assert (ROOT / path).exists(), f"{place}: no file {path}"


# ---- links of the pages that the site does not hold


@pytest.mark.parametrize("page", [*ROOT.glob("*.md"), *(ROOT / "bench").glob("*.md")], ids=name_of)
def test_links_lead_somewhere(page):
    text = FENCE.sub("", page.read_text())
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    assert not (dead := [link for link in links if link and not (page.parent / link).exists()]), dead
