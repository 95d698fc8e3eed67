"""docs/guide/where_accuracy_goes.md shows what docs/figures/make_explanation.py printed."""

import json
import re

from support.paths import ROOT

FIGURES = ROOT / "docs" / "figures"


def test_the_page_shows_the_committed_output():
    page = (ROOT / "docs" / "guide" / "where_accuracy_goes.md").read_text()
    assert f"```text\n{(FIGURES / 'explanation.txt').read_text()}```" in page


def test_the_output_is_that_of_the_committed_numbers():
    text, found = (FIGURES / "explanation.txt").read_text(), json.loads((FIGURES / "explanation.json").read_text())
    for row in found["rows"]:
        line = re.search(rf"^  {row['name']},.*$", text, re.MULTILINE)[0]
        numbers = re.findall(r"[+-]\d+\.\d\d", line)
        shown = [f"{100 * row[view]['mean']:+.2f}" for view in ("without", "alone") if not row[view]["same"]]
        assert numbers == shown, row["name"]
    assert f"{found['inferences']:,} inferences" in text
