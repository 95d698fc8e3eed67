"""docs/guide/troubleshooting.md quotes messages that the package has."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "guide" / "troubleshooting.md"


def quoted() -> list[str]:
    """The quoted words of every message, without the argument's name before them."""
    rows = [line.split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    found = [words for row in rows for words in re.findall("`([^`]+)`", row[1])]
    return [re.sub(r"^[\w.]+: (\.\.\.; )?", "", words) for words in found if " " in words]


@pytest.fixture(scope="module")
def strings() -> str:
    """All texts of the package, each on one line, without the values of f-strings."""
    found = []
    for path in (ROOT / "nft_ext").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                found.append("".join(str(part.value) for part in node.values if isinstance(part, ast.Constant)))
    return "\n".join(found)


@pytest.mark.parametrize("words", quoted())
def test_the_package_has_the_message(words, strings):
    assert words in strings


def test_every_kind_of_message_is_quoted():
    assert len(quoted()) > 25
