"""docs/reference/methods.md: its code, run as it stands from top to bottom, and its table of methods."""

import re

import pytest

from nft_ext import methods
from nft_ext.methods import registry
from support.paths import ROOT

PAGE = ROOT / "docs" / "reference" / "methods.md"


@pytest.fixture(scope="module")
def page():
    """The names that the page's code defines. The method it registers is forgotten afterwards."""
    names, before = {}, dict(registry._METHODS)
    for block in re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL):
        exec(compile(block, str(PAGE), "exec"), names)
    yield names
    registry._METHODS.clear()
    registry._METHODS.update(before)


def test_the_page_runs(page):
    assert page["control"] == methods.ScaledLogits(sigma=0.3, feedbacks=3)
    assert page["report"].runs == 4
    assert list(page["plain"].state_dict()) == list(page["model"].state_dict())


def test_the_worked_example_is_a_method_like_any_other(page):
    method = page["method"]
    assert method.name in methods.names() and method.name not in methods.NAMES
    assert methods.build(**method.config()) == method
    assert methods.build(**page["regularized"].config()) == page["regularized"]
    with pytest.raises(ValueError, match="chips: must be an integer >= 2"):
        methods.build("chip_spread", sigma=0.1, chips=1)


def test_a_name_is_taken_once(page):
    class Other(methods.Vanilla):
        name = "chip_spread"

    with pytest.raises(ValueError, match="name: must not be the name of another method; got chip_spread"):
        methods.register(Other)


def test_every_method_and_every_option_is_on_the_page():
    text = PAGE.read_text()
    for name in methods.NAMES:
        assert f"| `{name}` |" in text
        for option in methods.options_of(name):
            assert re.search(rf"\b{option}\b", text), f"{name}: {option}"
