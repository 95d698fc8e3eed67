"""Every figure of README and docs is the one in its committed file."""

import dataclasses
import re

import pytest

from bench.claims.page import ROOT, Claim, Page, agrees, faults
from bench.claims.pages import PAGES

PERFORMANCE = (ROOT / "docs/performance.md").read_text()
FILE = "bench/results/2026-11-26-ranks.json"


def page(*texts, stated=(), values=(1.94,)):
    return Page("page.md", [Claim(text, [FILE], lambda file: values) for text in texts], stated)


@pytest.mark.parametrize("of", PAGES, ids=lambda of: of.path)
def test_every_figure_is_the_files(of):
    assert not list(faults(of))


def test_the_pages_that_state_speeds_and_accuracies_are_checked():
    paths = {of.path for of in PAGES}
    assert {"README.md", "docs/performance.md", "docs/results/README.md", "docs/reference/monte_carlo.md"} <= paths
    for folder in ("docs", "docs/design/decisions", "docs/guide", "bench"):
        assert {str(file.relative_to(ROOT)) for file in (ROOT / folder).glob("*.md")} <= paths


def test_a_figure_that_differs_from_its_file_is_named_with_its_line():
    (fault,) = faults(page("took {} times less"), "# Ranks\n\nTwo took\n**1.93** times less.")
    assert fault == f"page.md:4: says 1.93, but {FILE} give 1.94"


@pytest.mark.parametrize(
    "text",
    ["It is 3 times faster.", "It takes 45 us.", "| a | **7** |", "It gains 2.5.", "88 +- 3", "up to 12 %", "37x"],
)
def test_a_figure_without_an_entry_is_named(text):
    assert any("has no entry" in fault for fault in faults(page(), text))


@pytest.mark.parametrize(
    "text", ["sigma 0.3 and 0.35", "`--lr 0.008`", "```\n3.5 ms\n```", "[zen4](a-2.5.json)", "## 2.5"]
)
def test_settings_code_links_and_headings_need_none(text):
    assert not list(faults(page(), text))


def test_an_entry_or_an_exception_without_a_place_is_named():
    found = list(faults(page("took {} times less", stated=["512 MiB"]), "Nothing."))
    assert len(found) == 2 and "no place" in found[0] and "512 MiB" in found[1]


def test_an_entry_with_another_number_of_figures_is_named():
    (fault,) = faults(page("{} to {} times", values=(1.0,)), "1.0 to 2.0 times")
    assert "2 figures, but its entry gives 1" in fault


def test_a_changed_digit_in_the_first_figure_of_any_entry_is_a_fault():
    of = next(of for of in PAGES if of.path == "docs/performance.md")
    text = (ROOT / of.path).read_text().replace("**", "")
    for claim in of.claims:
        match = claim.pattern.search(text)
        assert match
        last = match.end(1) - 1
        changed = text[:last] + str((int(text[last]) + 5) % 10) + text[last + 1 :]
        assert list(faults(dataclasses.replace(of, claims=[claim], part=r"\A"), changed)), claim.text


@pytest.mark.parametrize(
    "shown, value", [("1.10", 1.0951), ("3070", 3071.9), ("2e-5", 1.6e-5), ("13", 13.4), ("-1.1", -1.12)]
)
def test_a_figure_agrees_that_is_the_value_rounded_to_its_digits(shown, value):
    assert agrees(shown, value)


@pytest.mark.parametrize(
    "shown, value", [("1.10", 1.094), ("91.2", 91.147), ("3070", 3080), ("1.0", -1.0), ("999", 990)]
)
def test_a_figure_that_is_rounded_twice_or_otherwise_does_not(shown, value):
    assert not agrees(shown, value)


def test_a_ratio_is_bold_where_it_is_below_one_or_short_of_its_target():
    rows = re.findall(
        r"^\| .+? \| .+? \| .+? \| (\*\*)?([\d.]+)(?:\*\*)? \| ([\d.]*) ?\| \[", PERFORMANCE, re.MULTILINE
    )
    assert len(rows) == sum(line.count("| [") for line in PERFORMANCE.splitlines() if line.count("|") == 7)
    for bold, ratio, target in rows:
        assert bool(bold) == (float(ratio) < 1 or float(ratio) < float(target or 0)), (ratio, target)
