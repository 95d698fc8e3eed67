"""Reports of `nft-ext reproduce`: synthetic cells whose means, intervals and tests are worked out by hand."""

import base64
import csv
import json
import math
import re
import sys
from html.parser import HTMLParser

import pytest

from nft_ext.methods import BETAS
from nft_ext.reproduce import published
from nft_ext.reproduce.convergence import converged
from nft_ext.reproduce.figures import drawn
from nft_ext.reproduce.protocol import differences
from nft_ext.reproduce.summary import NO_CLAIM, comparisons, rank, rows, standards
from nft_ext.reproduce.tables import accuracy_tables, calibration_tables
from nft_ext.reproduce.theme import DARK, LIGHT
from support.cells import cell, line, report

T4 = 2.7764451051977987  # 97.5 % quantile of Student's t, 4 degrees of freedom
T1 = 12.706204736432095


@pytest.fixture
def plots():
    pytest.importorskip("matplotlib", reason="plots need matplotlib (extra: test)")


@pytest.fixture
def no_plots(monkeypatch):
    """Plots take most of a report's time; without matplotlib there are none."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)


# ---- published numbers --------------------------------------------------------------------------------------------


def test_published_numbers_are_those_of_the_paper():
    assert published.accuracy("vgg8-mnist", "ovf", 0.35) == 99.01
    assert published.accuracy("resnet18-tinyimagenet", "irs", 0.4) == 4.18
    assert published.accuracy("resnet18-cifar10", "ovf n=2", 0.3) == 61.60
    assert published.accuracy("resnet18-cifar10", "irs pretrained, 100/200 epochs", 0.3) == 57.34
    assert published.accuracy("resnet18-cifar10", "ovf reversed delta", 0.3) == pytest.approx(63.50 - 14.14)
    assert published.ekl("noise", 0.4) == pytest.approx(0.07876)  # plotted as 7.876e-2
    assert published.convergence("noise", "vgg8-mnist", 0.35) == (6, 10)


@pytest.mark.parametrize(
    "panel, variant, sigma",
    [
        ("vgg8-mnist", "vanilla", 0.4),  # cut off in the figure
        ("vgg8-mnist", "control", 0.3),
        ("vgg8-digits", "ovf", 0.3),
        ("vgg8-mnist", "ovf", 0.33),
        ("vgg8-mnist", "ovf", None),
        ("vgg8-mnist", "ovf n=2", 0.3),
        ("resnet18-cifar10", "ovf n=2", 0.2),
        ("resnet18-cifar10", "ovf n=5", 0.3),
    ],
)
def test_where_the_paper_has_no_number_there_is_none(panel, variant, sigma):
    assert published.accuracy(panel, variant, sigma) is None
    assert published.ekl("control", 0.3) is None and published.ekl("ovf", 0.33) is None
    assert published.ekl("note", 0.3) is None
    assert published.convergence("ovf", "vgg8-mnist", 0.3) is None
    assert published.convergence("control", "vgg8-mnist", 0.35) is None


def test_every_panel_with_a_published_beta_has_published_accuracies():
    assert set(published.facts()["accuracy_percent"]) == set(BETAS["ovf"]) == set(BETAS["irs"])
    assert len(published.flaws()) == 8


# ---- rows ---------------------------------------------------------------------------------------------------------


def test_a_row_has_the_mean_and_two_intervals_worked_out_by_hand():
    """Seed means 80, 82, 84, 86, 88 (sd sqrt(10)); the two chip means 83 and 85 (sd sqrt(2))."""
    (row,) = rows(line("ovf", [0.80, 0.82, 0.84, 0.86, 0.88]))
    assert row.accuracy == pytest.approx(84) and row.per_seed == pytest.approx((80, 82, 84, 86, 88))
    assert row.seed_ci95 == pytest.approx(T4 * math.sqrt(10 / 5), rel=1e-6)
    assert row.noise_ci95 == pytest.approx(T1 * math.sqrt(2 / 2), rel=1e-6)
    assert (row.published, row.difference) == (99.46, pytest.approx(84 - 99.46)) and row.clean == pytest.approx(95)
    assert (row.seeds, row.chips, row.images, row.ekl, row.ece) == (
        (0, 1, 2, 3, 4),
        2,
        100,
        pytest.approx(0.02),
        pytest.approx(0.05),
    )


def test_one_network_swept_is_a_row_a_sigma():
    found = rows([cell("vanilla", sigmas=(0.0, 0.1))])
    assert [(row.sigma, row.trained_sigma, row.published) for row in found] == [(0.0, None, 99.65), (0.1, None, 96.88)]


def test_networks_with_nothing_right_are_left_out_of_ekl_only():
    right, wrong = cell(seed=0, ekl=0.04), cell(seed=1, ekl=None, chips=(0.0, 0.0))
    (row,) = rows([right, wrong])
    assert row.ekl == pytest.approx(0.04) and math.isnan(row.ekl_per_seed[1]) and row.accuracy == pytest.approx(42.5)
    (row,) = rows([wrong])
    assert math.isnan(row.ekl)


def test_figures_at_the_fitted_temperature_are_means_over_the_seeds_if_all_were_measured_so():
    """T of 2 and 8: geometric mean 4. A figure that one seed lacks is of other networks than its neighbours."""
    cells = line("ovf", [0.80, 0.82])
    for one, temperature, ekl in zip(cells, (2.0, 8.0), (0.1, 0.3)):
        one["points"][0]["at_temperature"] = {"temperature": temperature, "ekl": ekl, "nll": 2 * ekl, "ece": 0.04}
    (row,) = rows(cells)
    assert (row.temperature, row.ekl_fitted, row.nll_fitted) == (
        pytest.approx(4),
        pytest.approx(0.2),
        pytest.approx(0.4),
    )
    assert row.nll == pytest.approx(0.3) and row.ece_fitted == pytest.approx(0.04)
    (table,) = calibration_tables([row])
    assert table.body == [["ovf", "0.050", "0.300", "0.02", "4", "0.040", "0.400", "0.2"]]
    cells[1]["points"][0]["at_temperature"] = None
    (row,) = rows(cells)
    assert math.isnan(row.temperature) and math.isnan(row.ekl_fitted) and row.nll == pytest.approx(0.3)


def test_two_cells_of_one_place_and_a_line_of_two_configurations_are_refused():
    with pytest.raises(ValueError, match="one cell per panel, variant, sigma and seed"):
        rows([cell(), cell()])
    with pytest.raises(ValueError, match="differ only in the seed within a row"):
        rows([cell(seed=0), cell(seed=1, epochs=5)])


def test_variants_come_in_the_order_of_the_figures_with_numbers_counted():
    names = [
        "irs",
        "ovf n=10",
        "ovf n=2",
        "ovf reversed decay",
        "ovf",
        "noise",
        "vanilla",
        "ovf pretrained, 50/200 epochs",
        "control",
    ]
    assert sorted(names, key=rank) == [
        "vanilla",
        "noise",
        "control",
        "ovf",
        "ovf reversed decay",
        "ovf n=2",
        "ovf n=10",
        "ovf pretrained, 50/200 epochs",
        "irs",
    ]


# ---- comparisons --------------------------------------------------------------------------------------------------


def test_a_comparison_is_paired_over_shared_seeds_worked_out_by_hand():
    """Differences 1 to 5 points: mean 3, t = 3 / (sqrt(2.5) / sqrt(5)) = 4.243, 4 degrees of freedom: p = 0.0132."""
    base = [0.80, 0.85, 0.83, 0.81, 0.84]
    ovf = [b + d for b, d in zip(base, (0.01, 0.02, 0.03, 0.04, 0.05))]
    found = comparisons(rows(line("noise", base) + line("ovf", ovf)))
    (one,) = found
    assert (one.a, one.b, one.seeds) == ("ovf", "noise", (0, 1, 2, 3, 4))
    assert one.mean == pytest.approx(3) and one.ci95 == pytest.approx(T4 * math.sqrt(2.5 / 5), rel=1e-6)
    assert one.p == pytest.approx(0.0132352, rel=1e-4) and one.p_holm == one.p


def test_only_seeds_that_both_have_count_and_one_is_no_claim():
    (one,) = comparisons(
        rows(line("noise", [0.5, 0.7]) + [cell(seed=1, chips=(0.8, 0.8)), cell(seed=2, chips=(0.1, 0.1))])
    )
    assert one.seeds == (1,) and one.mean == pytest.approx(10) and math.isnan(one.p) and math.isnan(one.p_holm)
    assert NO_CLAIM in str(one)
    assert comparisons(rows([cell("noise", seed=0), cell("ovf", seed=1)])) == []


def test_holms_p_is_the_smallest_times_their_number_and_never_falls():
    cells = line("noise", [0.50, 0.52, 0.51]) + line("control", [0.60, 0.58, 0.61]) + line("ovf", [0.70, 0.73, 0.71])
    a, b, c = sorted(comparisons(rows(cells)), key=lambda one: one.p)
    assert a.p_holm == pytest.approx(3 * a.p) and b.p_holm == pytest.approx(max(3 * a.p, 2 * b.p))
    assert c.p_holm == pytest.approx(max(b.p_holm, c.p))


def test_the_control_is_tested_against_noise_injection_in_the_family_of_ovf_and_irs():
    cells = [
        one
        for place, name in enumerate(("noise", "control", "ovf", "irs"))
        for one in line(name, [0.5 + 0.1 * place, 0.52 + 0.1 * place, 0.51 + 0.11 * place])
    ]
    found = comparisons(rows(cells))
    assert {(one.a, one.b) for one in found} == {
        ("control", "noise"),
        ("ovf", "noise"),
        ("ovf", "control"),
        ("irs", "noise"),
        ("irs", "control"),
    }
    smallest = min(found, key=lambda one: one.p)
    assert smallest.p_holm == pytest.approx(5 * smallest.p)


def test_equality_is_claimed_only_by_its_own_test():
    """Differences to the control: IRS 0.1 +- 0.1 points, OVF 0 +- 10. Both have a large p for a difference."""
    control = [0.80, 0.82, 0.84]
    irs = [c + d for c, d in zip(control, (0.000, 0.001, 0.002))]
    ovf = [c + d for c, d in zip(control, (-0.10, 0.00, 0.10))]
    found = {one.a: one for one in comparisons(rows(line("control", control) + line("ovf", ovf) + line("irs", irs)))}
    assert min(found["ovf"].p_holm, found["irs"].p_holm) > 0.05
    assert found["irs"].outcome == "equal, < 2 points" and found["irs"].p_equal_holm == 2 * found["irs"].p_equal < 0.05
    assert found["ovf"].outcome == "open" and found["ovf"].p_equal > 0.3
    shifted = [c + 0.01 + d for c, d in zip(control, (0.000, 0.0001, 0.0002))]
    (small,) = comparisons(rows(line("control", control) + line("irs", shifted)))
    assert small.outcome == "differ, < 2 points"


def test_what_a_variant_stands_against():
    assert standards("ovf") == ("noise", "control", "control-ovf", "noise tuned", "noise compute")
    assert standards("irs") == ("noise", "control", "control-irs", "noise tuned")  # IRS has one forward per step
    assert standards("control") == standards("control-irs") == standards("control n=2") == ("noise",)
    assert standards("noise") == standards("vanilla") == standards("control pretrained, 50/200 epochs") == ()
    assert standards("noise tuned") == standards("noise compute") == ("noise", "control", "control-ovf", "control-irs")
    assert standards("irs positive") == ("noise", "control", "control-irs", "noise tuned", "irs")
    assert standards("irs n=2") == ("noise", "control n=2", "control-irs n=2")  # another N, another factor 1/(N+1)
    assert standards("irs reversed decay") == ("noise", "control", "control-irs", "noise tuned", "irs")
    assert standards("ovf pretrained, 50/200 epochs") == (
        "control pretrained, 50/200 epochs",
        "control-ovf pretrained, 50/200 epochs",
        "ovf",
    )


# ---- convergence --------------------------------------------------------------------------------------------------


def test_trainings_are_counted_by_both_criteria_beside_the_papers_counts():
    """Noise: mean 0.5, so 0.2 fails and 0.8 passes; absolute bar 0.9 * 0.95. Fisher, 3/6 and 0/6: 2 * 20/220 = 2/11."""
    noise, ovf = line("noise", [0.2] * 3 + [0.8] * 3, sigma=0.35), line("ovf", [0.9] * 6, sigma=0.35)
    first, second = converged(rows(noise + ovf))
    assert (first.relative.non_converging, first.absolute.non_converging) == (3, 6)
    assert (second.relative.non_converging, second.absolute.non_converging) == (0, 0)
    assert first.p_relative is None and second.p_relative == pytest.approx(2 / 11)
    assert (first.paper, second.paper, second.clean) == ((6, 10), (0, 10), pytest.approx(95))


def test_a_training_that_fails_without_noise_too_does_not_converge():
    """Judged by its own clean accuracy it would."""
    found = converged(rows(line("noise", [0.11, 0.11], clean=0.11) + line("ovf", [0.9, 0.9])))
    assert found[0].absolute.non_converging == 2


# ---- the files ----------------------------------------------------------------------------------------------------


def grid(seeds=3):
    cells = []
    for place, variant in enumerate(("noise", "control", "ovf", "irs")):
        for sigma in (0.3, 0.35):
            cells += line(
                variant, [0.8 + 0.02 * place + 0.005 * (seed * (place + 1) % 3) for seed in range(seeds)], sigma=sigma
            )
    return cells + [cell("vanilla", seed=seed, sigmas=(0.3, 0.35), chips=(0.4, 0.5)) for seed in range(seeds)]


@pytest.mark.slow
@pytest.mark.parametrize("experiment", ["figure4", "convergence", "ablations"])
def test_a_report_is_five_files_and_its_text_fits_a_terminal(experiment, tmp_path, plots):
    text = report(grid(), tmp_path, experiment)
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{experiment}.{kind}" for kind in ("txt", "csv", "json", "png", "html")
    }
    assert max(map(len, text.splitlines())) <= 110 and (tmp_path / f"{experiment}.txt").read_text() == text + "\n"
    assert (tmp_path / f"{experiment}.png").read_bytes().startswith(b"\x89PNG")


def test_the_order_of_the_cells_does_not_matter(tmp_path, no_plots):
    texts = []
    for cells in (grid(), grid()[::-1]):
        report(cells, tmp_path)
        texts.append([path.read_text() for path in sorted(tmp_path.iterdir())])
    assert texts[0] == texts[1] and len(texts[0]) == 4


def test_the_same_rows_give_the_same_plot(plots):
    table = rows([cell()])
    assert drawn("variants", table, [], LIGHT, "svg") == drawn("variants", table, [], LIGHT, "svg")
    assert drawn("variants", table, [], LIGHT, "svg") != drawn("variants", table, [], DARK, "svg")


def test_csv_and_json_hold_the_numbers(tmp_path, no_plots):
    report([cell(ekl=None), cell("noise")], tmp_path)
    with open(tmp_path / "figure3.csv") as file:
        noise, ovf = csv.DictReader(file)
    assert float(ovf["accuracy"]) == pytest.approx(85) and ovf["per_seed"] == "85"
    assert ovf["ekl"] == ovf["seed_ci95"] == ""
    assert float(noise["published"]) == 86.61 and float(noise["difference"]) == pytest.approx(85 - 86.61)
    found = json.loads(
        (tmp_path / "figure3.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON")
    )
    assert found["rows"][1]["ekl"] is None and found["rows"][1]["difference"] == pytest.approx(85 - 99.46)
    assert found["comparisons"][0]["p"] is None and found["command"] == "nft-ext reproduce figure3"


def test_the_json_names_every_network_and_how_its_training_ended(tmp_path, no_plots):
    cells = line("noise", [0.9, 0.8])
    cells[0]["training"]["best"] = {"epoch": 2, "train_loss": 0.7}
    cells[1]["training"]["best"] = None
    report(cells, tmp_path)
    assert json.loads((tmp_path / "figure3.json").read_text())["networks"] == {
        "vgg8-mnist-noise-0.3-0": {"epoch": 2, "train_loss": 0.7, "nft_ext": "0.1.0"},
        "vgg8-mnist-noise-0.3-1": {"epoch": None, "train_loss": None, "nft_ext": "0.1.0"},
    }


def test_one_seed_is_said_to_allow_no_claim(tmp_path, no_plots):
    assert NO_CLAIM in report(grid(seeds=1), tmp_path)
    assert NO_CLAIM not in report(grid(seeds=2), tmp_path)
    assert f"without an interval: {NO_CLAIM}" in report(
        grid(seeds=2)[:-2] + [cell("irs", sigma=0.2), cell("noise", sigma=0.2)], tmp_path
    )


def test_missing_cells_are_dashes_and_said(tmp_path, no_plots):
    cells = [c for c in grid() if (c["config"]["variant"], c["config"]["sigma"]) != ("ovf", 0.35)]
    text = report(cells, tmp_path, cells=len(grid()))
    table = next(t for t in accuracy_tables(rows(cells), False) if t.title == "vgg8-mnist, sigma 0.35")
    assert next(body for body in table.body if body[0] == "ovf")[1:] == ["-"] * 9
    assert f"{len(cells)} of {len(grid())} networks" in text and 'tables show "-" for the others' in " ".join(
        text.split()
    )
    assert "fewer than 3 training seeds" in report(grid()[1:], tmp_path)


def test_networks_without_ekl_are_counted(tmp_path, no_plots):
    assert "1 networks have no right answer" in report([cell(ekl=None), cell("noise")], tmp_path, "figure4")


def test_networks_without_ekl_are_plotted_around(plots):
    nothing = [cell(ekl=None, panel="vgg8-digits")]  # no number on the axis at all
    for cells in ([cell(ekl=None), cell("noise")], nothing):
        assert drawn("ekl", rows(cells), [], LIGHT, "png").startswith(b"\x89PNG")


def test_without_matplotlib_all_but_the_plot_is_there(tmp_path, no_plots):
    assert "pip install matplotlib" in report(grid(), tmp_path)
    assert not (tmp_path / "figure3.png").exists() and "<figure>" not in (tmp_path / "figure3.html").read_text()


@pytest.mark.parametrize(
    "cells, said", [([], "at least one finished cell"), ([{"key": "x", "config": {}}], "points, clean, config.panel")]
)
def test_cells_that_are_none_are_refused_before_a_file_is_written(cells, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        report(cells, tmp_path)
    assert not list(tmp_path.iterdir())


# ---- the protocol -------------------------------------------------------------------------------------------------


def test_what_differs_from_the_papers_protocol_comes_from_the_settings():
    full = cell(chips=[0.9] * 200)
    always = differences([full])
    assert len(always) == 7 and not any("the paper 200" in text for text in always)
    faster = differences(
        [cell(chips=[0.9] * 200, precision="bfloat16", channels_last=True)]
    )  # a layout in memory is no difference
    assert faster == ["vgg8-mnist: precision bfloat16 (the paper float32)", *always]
    small = cell(width=0.125, epochs=5, lr=2e-3, train_images=3000)
    assert differences([small])[:2] == [
        "vgg8-mnist: width 0.125 (the paper 1), epochs 5 (the paper 200), lr 0.002 (the paper 0.001), "
        "3000 training images (the paper all)",
        "2 chips per network and sigma (the paper 200)",
    ]
    assert "no such panel" in differences([cell(panel="vgg8-digits")])[0]


# ---- the page -----------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Collects what a page refers to, and checks that its elements are closed in order."""

    VOID = {"meta", "img", "source", "br"}

    def __init__(self, text):
        super().__init__()
        self.open, self.links, self.text, self.tags = [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.links += [value for name, value in attrs if name in ("src", "href", "srcset")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_needs_nothing_outside_itself(tmp_path, plots):
    report(grid(seeds=2), tmp_path)
    assert (tmp_path / "figure3.png").read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "figure3.html").read_text()
    page = Page(text)
    assert len(page.links) == 4 and all(link.startswith("data:image/svg+xml;base64,") for link in page.links)
    assert not re.search(r"https?://|@import|url\(|<script", text) and "arXiv 2305.14561" in text
    for link in page.links:
        svg = base64.b64decode(link.partition(",")[2]).decode()
        assert svg.rstrip().endswith("</svg>") and "<image" not in svg and "@font-face" not in svg
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in page.tags
    assert "prefers-color-scheme: dark" in text and "overflow-x: auto" in text
    for wanted in (
        "What differs from the paper's protocol",
        "Known flaws of the published results",
        "nft-ext reproduce figure3",
        "x86_64",
        *published.flaws(),
    ):
        assert wanted in "".join(page.text)


def test_a_plot_takes_names_as_they_are(plots):
    assert drawn("variants", rows([cell("$b_^{$ <i>")]), [], LIGHT, "svg")  # no formula, no markup


def test_names_are_escaped_on_the_page(tmp_path, no_plots):
    report([cell("<script>alert('x')</script> & \"q\"")], tmp_path, note="<b>bold</b>")
    text = (tmp_path / "figure3.html").read_text()
    assert "<script" not in text and "<b>" not in text and "&lt;script&gt;" in text
    Page(text)
