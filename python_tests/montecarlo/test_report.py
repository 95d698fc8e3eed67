"""The report: its figures, its files and its pictures."""

import csv
import json
import math

import numpy as np
import pytest

from nft_ext.montecarlo import MonteCarloReport, RunStatistic, plot_sweep, sweep_table

RUNS, IMAGES = 50, 200
ACCURACY = np.sort(np.random.default_rng(3).binomial(IMAGES, 0.9, RUNS) / IMAGES)


def a_report(accuracy=ACCURACY, sigma=0.1, **changes):
    ekl = np.linspace(0.2, 0.6, len(accuracy))
    ekl[1] = math.nan
    values = dict(
        statistics={
            "accuracy": RunStatistic(accuracy, float(accuracy.mean()), higher_is_better=True),
            "ekl": RunStatistic(ekl, 0.41, higher_is_better=False),
        },
        ece=0.02,
        runs=len(accuracy),
        images=IMAGES,
        classes=10,
        seed=7,
        nvm=[
            {
                "device": {
                    "name": "gaussian",
                    "weight_bits": 8,
                    "device_bits": 2,
                    "sigma": sigma,
                    "relative_to": "max",
                },
                "text": "a device",
                "layers": ["fc"],
            }
        ],
        protocol="full",
        precision="float32",
        chips_per_pass=4,
        batch_size=64,
        hardware="cpu",
        seconds=1.5,
        versions={"nft_ext": "0.1", "torch": "2.11"},
    )
    return MonteCarloReport(**(values | changes))


def test_mean_std_interval_are_those_of_the_runs():
    accuracy = a_report().accuracy
    assert accuracy.per_run.shape == (RUNS,) and accuracy.per_run.dtype == np.float64
    assert accuracy.mean == ACCURACY.mean()
    assert accuracy.std == pytest.approx(np.std(ACCURACY, ddof=1), rel=1e-12)
    # t(0.975, 49) = 2.00958. The longer arm is on the side of the skew, here above.
    half = 2.00958 * accuracy.std / math.sqrt(RUNS)
    deviation = ACCURACY - ACCURACY.mean()
    centre = 1.959964**2 * np.mean(deviation**3) / np.mean(deviation**2) / (2 * RUNS)
    assert centre > 0 and accuracy.ci95 == pytest.approx(centre + math.hypot(centre, half), rel=1e-5)
    assert accuracy.interval == pytest.approx((accuracy.mean - half, accuracy.mean + accuracy.ci95), rel=1e-5)


def test_quantile_comes_with_the_order_statistics_around_it():
    median = a_report().accuracy.quantile(0.5)
    assert median == np.median(ACCURACY)
    # n = 50, q = 0.5: ranks 18 and 33 (any table of the binomial).
    assert (median.low, median.high) == (ACCURACY[17], ACCURACY[32])
    assert a_report().accuracy.quantile(0.01).low == -math.inf
    with pytest.raises(ValueError, match="^q: must be > 0 and < 1"):
        a_report().accuracy.quantile(1)


def test_worst_is_the_bad_end_and_says_what_it_bounds():
    report = a_report()
    assert report.accuracy.worst == ACCURACY[0] and report.accuracy.worst.runs == RUNS
    assert report.ekl.worst == 0.6 and report.ekl.worst.runs == RUNS - 1
    assert (1 - report.accuracy.worst.bounds_quantile) ** RUNS == pytest.approx(0.05)


def test_a_metric_not_asked_for_says_so():
    with pytest.raises(AttributeError, match="'nll'"):
        a_report().nll


def test_json_gives_every_figure_back_exactly(tmp_path):
    report = a_report(notes=["a note"], interrupted=True, ece=math.nan)
    report.to_json(tmp_path / "report.json")
    again = MonteCarloReport.from_json(tmp_path / "report.json")
    for name in ("accuracy", "ekl"):
        np.testing.assert_array_equal(getattr(again, name).per_run, getattr(report, name).per_run)
        assert getattr(again, name).pooled == getattr(report, name).pooled
    assert math.isnan(again.ece)
    assert str(again) == str(report)
    assert again.versions == report.versions and again.interrupted


def test_json_names_its_conditions(tmp_path):
    a_report().to_json(tmp_path / "report.json")
    content = json.loads((tmp_path / "report.json").read_text(), parse_constant=pytest.fail)
    device = content["nvm"][0]["device"]
    assert device == {"name": "gaussian", "weight_bits": 8, "device_bits": 2, "sigma": 0.1, "relative_to": "max"}
    assert content["seed"] == 7 and content["runs"] == RUNS and content["versions"]["torch"] == "2.11"
    assert content["conditions"] == "gaussian, sigma = 0.1 of the maximal conductance, M = 8, K = 2"


@pytest.mark.parametrize(
    "text, words",
    [
        ("{", "whole report"),
        ("[]", "a JSON list"),
        ('{"format": "other"}', "got .*format other"),
        ('{"format": "nft_ext.monte_carlo/1", "metrics": {}}', "no entry 'ece'"),
    ],
)
def test_a_file_that_is_no_report_is_refused(tmp_path, text, words):
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(ValueError, match=f"^path: .*{words}"):
        MonteCarloReport.from_json(tmp_path / "report.json")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="^path: .*absent.json"):
        MonteCarloReport.from_json(tmp_path / "absent.json")


def test_csv_has_a_row_a_run(tmp_path):
    a_report().to_csv(tmp_path / "report.csv")
    with open(tmp_path / "report.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["accuracy"]) for row in rows] == ACCURACY.tolist()
    assert rows[1]["ekl"] == "nan" and rows[49]["run"] == "49"
    assert rows[0]["seed"] == "7" and rows[0]["sigma"] == "0.1"


def test_table_fits_a_screen_and_names_what_the_figures_rest_on():
    text = str(a_report(notes=["word " * 60]))
    lines = text.splitlines()
    assert len(lines) <= 24 and max(map(len, lines)) <= 100
    for part in (
        "50 chips x 200 images",
        "sigma = 0.1 of the maximal conductance, M = 8, K = 2",
        "seed 7",
        f"{100 * ACCURACY.mean():.2f}",
        "(ECE, pooled)  0.0200",
        "the worst of 50",
    ):
        assert part in text


def test_layers_that_differ_are_told_apart():
    nvm = a_report().nvm + a_report(sigma=0.2).nvm
    report = a_report(nvm=nvm)
    assert report.sigma == [0.1, 0.2]
    assert report.conditions().count("(1 layers)") == 2


def test_pictures_are_drawn(tmp_path):
    pytest.importorskip("matplotlib", reason="plots need matplotlib")
    a_report().plot(tmp_path / "report.png")
    a_report(accuracy=np.ones(4)).plot(tmp_path / "same.svg")
    curves = {"one": [a_report(), a_report(sigma=0.2)], "other": [a_report(sigma=0.2)], "none": []}
    plot_sweep(curves, tmp_path / "sweep.svg", "A title")
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")
    assert all(word in (tmp_path / "sweep.svg").read_text() for word in ("A title", "one", "other"))
    assert "sigma = 0.1 of the maximal conductance" in (tmp_path / "same.svg").read_text()


def test_without_matplotlib_the_error_gives_the_command(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        a_report().plot(tmp_path / "report.png")


def test_sweep_table_has_a_row_a_sigma_and_a_column_a_curve():
    short = a_report(accuracy=np.array([0.5, 0.5]), sigma=0.2, interrupted=True)
    lines = sweep_table({"one": [a_report(), a_report(sigma=0.2)], "other": [short]}).splitlines()
    assert lines[1] == ("sigma of the maximal conductance; gaussian, M = 8, K = 2; 2 to 50 chips x 200 images, seed 7")
    assert lines[2].split() == ["sigma", "one", "other"]
    assert lines[3].split()[0] == "0.1" and lines[3].split()[-1] == "-"
    assert lines[4].endswith("50.00 +- 0.00*")
    assert len({len(line) for line in lines[2:5]}) == 1


def test_a_sweep_needs_reports_of_one_sigma():
    with pytest.raises(ValueError, match="^curves: must hold at least one report"):
        sweep_table({"one": []})
    mixed = a_report(nvm=a_report().nvm + a_report(sigma=0.2).nvm)
    with pytest.raises(ValueError, match="^curves: every report must have one sigma"):
        sweep_table({"one": [mixed]})
