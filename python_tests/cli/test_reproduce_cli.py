"""The command `nft-ext reproduce`: what a dry run tells, how work is shared, what is refused. Nothing is trained."""

import re

import pytest

from nft_ext.cli.main import main
from nft_ext.reproduce import estimate
from nft_ext.reproduce.as_published import in_setting
from nft_ext.reproduce.grid import cells
from nft_ext.reproduce.panels import PRESETS
from nft_ext.reproduce.store import Store

DIGITS = ["--panel", "vgg8-digits", "--preset", "smoke"]
SMOKE = in_setting(PRESETS["smoke"], "published")  # the command's default


def reproduce(*arguments):
    return main(["reproduce", *map(str, arguments)])


@pytest.fixture
def a_minute_each(monkeypatch):
    """Measures nothing: a cell is said to take a minute."""
    monkeypatch.setattr(estimate, "seconds", lambda grid, data_dir: {cell.key: 60.0 for cell in grid})


def test_a_dry_run_lists_the_cells_with_a_time_measured_here_and_leaves_nothing(tmp_path, capsys):
    assert (
        reproduce(
            "figure3", *DIGITS, "--sigma", 0.1, "--methods", "vanilla", "irs", "--dry-run", "--out", tmp_path / "out"
        )
        == 0
    )
    *lines, summary = capsys.readouterr().out.splitlines()
    assert [re.fullmatch(r" *(\d+(?:[:.]\d+)*)( ?s)?  (vgg8-digits, .*)", line)[3] for line in lines] == [
        "vgg8-digits, vanilla, seed 0",
        "vgg8-digits, control, sigma 0.1, seed 0",
        "vgg8-digits, irs, sigma 0.1, seed 0",
    ]
    assert re.match(r"3 networks, 0 finished; about \S+.* left on this machine", summary)
    assert not (tmp_path / "out").exists()


def test_a_dry_run_marks_what_is_finished_and_counts_only_the_rest(tmp_path, capsys, a_minute_each):
    grid = cells("convergence", "vgg8-digits", SMOKE, seeds=2)
    Store(tmp_path).write(grid[0], {"points": [{}]})
    assert reproduce("convergence", *DIGITS, "--seeds", 2, "--jobs", 2, "--dry-run", "--out", tmp_path) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.endswith("(finished)") for line in lines[:-1]] == [True] + [False] * 7
    assert "8 networks, 1 finished; about 7:00 left on this machine, or 3:30 with 2 jobs" in lines[-1]


def test_shards_are_disjoint_and_together_the_grid(tmp_path, capsys, a_minute_each):
    seen = []
    for shard in ("1/3", "2/3", "3/3"):
        assert reproduce("protocol", *DIGITS, "--shard", shard, "--dry-run", "--out", tmp_path) == 0
        seen += [line.split("  ")[-1] for line in capsys.readouterr().out.splitlines()[:-1]]
    assert sorted(seen) == sorted(map(str, cells("protocol", "vgg8-digits", SMOKE)))


def test_numbers_in_place_of_the_presets_reach_the_cells(tmp_path, capsys, a_minute_each):
    given = {
        "width": 0.25,
        "epochs": 3,
        "lr": 0.004,
        "batch_size": 16,
        "train_images": 100,
        "test_images": 40,
        "runs": 5,
    }
    (cell, *_) = cells("figure3", "vgg8-digits", SMOKE.replace(**given))
    Store(tmp_path).write(cell, {"points": [{}, {}]})
    options = [text for name, value in given.items() for text in ("--" + name.replace("_", "-"), value)]
    assert reproduce("figure3", *DIGITS, *options, "--dry-run", "--out", tmp_path) == 0
    assert capsys.readouterr().out.splitlines()[0].endswith("(finished)")


def test_our_setting_finds_the_networks_of_older_results(tmp_path, capsys, a_minute_each):
    (cell, *_) = cells("figure3", "vgg8-digits", PRESETS["smoke"])
    Store(tmp_path).write(cell, {"points": [{}, {}]})
    for setting, finished in (("ours", True), ("published", False)):
        assert reproduce("figure3", *DIGITS, "--setting", setting, "--dry-run", "--out", tmp_path) == 0
        assert capsys.readouterr().out.splitlines()[0].endswith("(finished)") is finished


def test_the_searches_of_tuned_methods_come_first(tmp_path, capsys, a_minute_each):
    assert reproduce("figure3", *DIGITS, "--methods", "tuned", "--sigma", 0.1, "--dry-run", "--out", tmp_path) == 0
    *lines, summary = [line.split("  ")[-1] for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == "vgg8-digits, search for noise tuned, logit_scale 1, sigma 0.1, seed 1000"
    assert lines[-1] == "vgg8-digits, noise tuned, sigma 0.1, seed 0" and summary.startswith("6 networks, 0 finished")


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("figure5",), "experiment.*figure3.*figure5"),
        (("figure3", "--panel", "vgg8-minst"), "panel.*did you mean 'vgg8-mnist'"),
        (("figure3", "--setting", "our"), "setting.*did you mean 'ours'"),
        (("figure3", "--preset", "quik"), "preset.*did you mean 'quick'"),
        (("figure3", *DIGITS, "--methods", "ofv"), "method.*did you mean 'ovf'"),
        (("figure3", *DIGITS, "--sigma", -0.1), "sigma.*>= 0.*-0.1"),
        (("figure3", *DIGITS, "--seeds", 0), "seeds.*>= 1"),
        (("figure3", *DIGITS, "--jobs", 0), "--jobs.*>= 1"),
        (("figure3", *DIGITS, "--lr", 0), "lr.*> 0"),
        (("protocol", *DIGITS, "--methods", "ovf"), "--methods.*must be left out"),
        (("figure3", *DIGITS, "--shard", "4/3"), "--shard.*1 <= I <= N.*4/3"),
        (("figure3", *DIGITS, "--shard", "first"), "--shard.*two integers.*first"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_begun(arguments, words, tmp_path, capsys):
    assert reproduce(*arguments, "--out", tmp_path / "out", "--dry-run") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(words, line)
    assert not (tmp_path / "out").exists()


def test_missing_data_are_told_before_any_work(tmp_path, capsys):
    assert reproduce("figure3", "--preset", "smoke", "--data-dir", tmp_path, "--out", tmp_path / "out") == 1
    assert str(tmp_path) in capsys.readouterr().err and not (tmp_path / "out").exists()
