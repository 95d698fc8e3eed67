"""`monte_carlo` under "stratified": which images a chip sees for any batching, the report, and the refusals."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

import nft_ext as nft
from nft_ext.montecarlo import MonteCarloReport, monte_carlo
from nft_ext.montecarlo.execution import chip_evaluator, pilot
from nft_ext.montecarlo.statistics.slices import Slices
from nft_ext.montecarlo.tasks.examples import Examples
from nft_ext.montecarlo.tasks.metric import asked_metrics
from nft_ext.montecarlo.tasks.resolution import resolved

IMAGES, CLASSES, RUNS = 37, 6, 23
NVM = nft.NVMDevice(sigma=0.3)


@pytest.fixture
def model():
    torch.manual_seed(5)
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, CLASSES))
    return nft.convert(net, NVM)


@pytest.fixture
def data(model):
    inputs = torch.randn(IMAGES, 2, 6, 6, generator=torch.Generator().manual_seed(6))
    with torch.no_grad(), nft.noise(model, enabled=False):
        labels = model.eval()(inputs).argmax(dim=1)  # what the clean network says, so that chips are often right
    return inputs, labels


def evaluate(model, data, **options):
    defaults = {"runs": RUNS, "seed": 11, "progress": False, "protocol": "stratified", "slice_images": 10}
    return monte_carlo(model, data, **(defaults | options))


def by_hand(model, data, most, runs):
    """(right, images, loss) of each chip on its slice, from whole programmed networks."""
    rows = []
    for draw in range(runs):
        numbers, counted = Slices(11, IMAGES, most).of([draw])
        mine = numbers[0][counted[0]]
        with torch.no_grad():
            p = nft.program(model, seed=11, draw=draw).eval()(data[0][mine]).double().softmax(dim=1)
        right = p.argmax(dim=1) == data[1][mine]
        loss = -p[torch.arange(len(mine)), data[1][mine]].log()
        rows.append([right.sum().item(), len(mine), loss[right].sum().item()])
    return np.array(rows).T


@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(chips_per_pass=1),
        dict(chips_per_pass=4),
        dict(batch_size=3),
        dict(slice_images=1),
        dict(slice_images=37),
        dict(slice_images=4, chips_per_pass=5, batch_size=2),
    ],
)
def test_run_r_is_the_network_programmed_with_draw_r_on_slice_r(model, data, options):
    right, images, loss = by_hand(model, data, options.get("slice_images", 10), RUNS)
    report = evaluate(model, data, **options)
    assert report.accuracy.per_run.tolist() == (right / images).tolist()
    assert report.accuracy.mean == pytest.approx(right.sum() / images.sum(), rel=1e-15)
    assert report.ekl.pooled == pytest.approx(loss.sum() / right.sum(), rel=1e-5)
    assert report.images_evaluated == images.sum() and report.images == IMAGES
    assert len(set(report.accuracy.per_run)) > 1, "all slices alike would prove nothing"


def test_slices_of_all_images_give_the_full_protocol_s_figures(model, data):
    whole, sliced = (
        evaluate(model, data, protocol="full", slice_images="auto"),
        evaluate(model, data, slice_images=IMAGES),
    )
    assert sliced.accuracy.per_run.tolist() == whole.accuracy.per_run.tolist()
    for name in ("mean", "std", "ci95"):
        assert getattr(sliced.accuracy, name) == pytest.approx(getattr(whole.accuracy, name), rel=1e-12)
    assert sliced.ece == pytest.approx(whole.ece, rel=1e-4)
    assert sliced.equivalent_full_runs == pytest.approx(RUNS)


def test_the_report_names_protocol_slices_and_tilings_and_reads_back(model, data, tmp_path):
    report = evaluate(model, data)
    assert (report.protocol, report.slice_images, report.slices, report.tilings) == ("stratified", 10, 4, RUNS / 4)
    assert "estimated" in str(report) and "5.75 tilings of 4 slices" in str(report)
    report.to_json(tmp_path / "report.json")
    content = json.loads((tmp_path / "report.json").read_text())
    entry = content["metrics"]["accuracy"]
    assert entry["std_is_estimated"] and "worst" not in entry
    assert "need protocol='full'" in entry["quantiles_absent"]
    assert content["equivalent_full_runs"] == report.equivalent_full_runs
    again = MonteCarloReport.from_json(tmp_path / "report.json")
    assert str(again) == str(report)
    report.plot(tmp_path / "report.png")
    assert (tmp_path / "report.png").stat().st_size > 0
    report.to_csv(tmp_path / "report.csv")


def test_slices_of_all_images_have_quantiles_and_a_worst_chip(model, data, tmp_path):
    whole, sliced = (
        evaluate(model, data, protocol="full", slice_images="auto"),
        evaluate(model, data, slice_images=IMAGES),
    )
    for q in (0.05, 0.5):
        one, other = whole.accuracy.quantile(q), sliced.accuracy.quantile(q)
        assert (one, one.low, one.high) == (other, other.low, other.high)
    assert sliced.accuracy.worst == whole.accuracy.worst == whole.accuracy.per_run.min()
    assert "the worst of 23" in str(sliced) and "no quantiles" not in str(sliced)
    sliced.to_json(tmp_path / "report.json")
    again = MonteCarloReport.from_json(tmp_path / "report.json")
    assert str(again) == str(sliced) and again.accuracy.worst == sliced.accuracy.worst
    sliced.plot(tmp_path / "report.png")


@pytest.mark.parametrize("options", [dict(protocol="full", slice_images="auto"), dict()])
def test_every_report_says_what_its_intervals_hold_and_what_they_do_not(model, data, options, tmp_path):
    report = evaluate(model, data, runs=64, metrics=("accuracy", "ekl", "nll"), **options)
    assert report.unseen_chips == pytest.approx(1 - 0.05 ** (1 / 64))
    assert "up to 4.6 % of chips may be unlike any seen (95 %)" in str(report)
    low, high = report.accuracy.interval
    said = "+- 95 %: mean over chips of this network, on these images"
    assert f"{said}; accuracy {100 * low:.2f} to {100 * high:.2f} %" in str(report)
    assert report.accuracy.ci95 == pytest.approx(max(report.accuracy.mean - low, high - report.accuracy.mean))
    report.to_json(tmp_path / "report.json")
    content = json.loads((tmp_path / "report.json").read_text())
    assert content["unseen_chips"] == report.unseen_chips
    for name, entry in content["metrics"].items():
        precision = report.statistics[name].precision
        assert entry["rough"] == precision.rough and entry["degrees_of_freedom"] == precision.df
        assert entry["interval95"] == list(report.statistics[name].interval)
    again = MonteCarloReport.from_json(tmp_path / "report.json")
    assert again.accuracy.interval == pytest.approx(report.accuracy.interval, rel=1e-14)


def test_an_interval_from_few_chips_is_marked_as_rough(model, data):
    few, many = (evaluate(model, data, protocol="full", slice_images="auto", runs=runs) for runs in (12, 200))
    assert few.accuracy.precision.rough and not many.accuracy.precision.rough
    assert "rough 95 % intervals, from fewer than 20 degrees of freedom: accuracy (" in str(few)
    assert "rough" not in str(many)


def test_quantiles_and_the_worst_case_are_refused_with_the_reason(model, data):
    accuracy = evaluate(model, data).accuracy
    with pytest.raises(ValueError, match="^quantile: each chip saw a slice .* need protocol='full'; got q = 0.05"):
        accuracy.quantile(0.05)
    with pytest.raises(ValueError, match="^worst: each chip saw a slice"):
        accuracy.worst


def test_with_too_few_chips_on_the_same_slices_the_interval_is_marked_conservative(model, data):
    few, more = evaluate(model, data, runs=7), evaluate(model, data, runs=8)
    assert few.accuracy.conservative and any("below 8 chips" in note for note in few.notes)
    assert not more.accuracy.conservative and not any("below 8 chips" in note for note in more.notes)
    assert few.accuracy.ci95 > 0


def test_auto_chooses_a_size_once_and_the_number_reproduces_it(model, data, monkeypatch):
    monkeypatch.setattr(pilot, "measure", lambda *a: pilot.Cost(overhead=8e-4, chip=3e-4, image=1e-4))
    report = evaluate(model, data, slice_images="auto", runs=40)
    assert report.pilot["n_star"] == pilot.best_slice(
        pilot.Components(report.pilot["mean"], report.pilot["B2"], report.pilot["X2"], report.pilot["P2"]),
        4.0,
        IMAGES,
    )  # 8 chips share a pass: (3 + 8 / 8) images' time per chip
    [note] = [note for note in report.notes if "slice_images=" in note]
    again = evaluate(model, data, slice_images=int(note.split("slice_images=")[1].split()[0]), runs=40)
    assert again.accuracy.per_run.tolist() == report.accuracy.per_run.tolist() and again.pilot is None


@pytest.mark.parametrize("between, images", [(0.05, 5), (1e-3, 12)])
def test_the_pilot_looks_at_more_images_only_where_chips_differ_little(model, data, monkeypatch, between, images):
    monkeypatch.setattr(pilot, "PILOT_IMAGES", (5, 12))
    cpu = torch.device("cpu")
    evaluator = chip_evaluator.ChipEvaluator(model.eval(), Examples.of([data]), None, 1, 16, cpu)
    evaluator.task = resolved(asked_metrics("accuracy"), evaluator.examples, torch.zeros(IMAGES, CLASSES), data)
    monkeypatch.setattr(pilot, "components", lambda correct, n: pilot.Components(0.9, between, 0.1, 0.05))
    with torch.no_grad():
        found = pilot.pilot(evaluator, several=True)
        whole = evaluator.pilot_parts(3, 0, 12)
        parts = [evaluator.pilot_parts(3, 0, 5), evaluator.pilot_parts(3, 5, 12)]
    assert (found.chips, found.images) == (24, images)
    assert (np.concatenate(parts, axis=1) == whole).all(), "the further images of the same chips"


def test_auto_with_real_times_leaves_the_runs_their_exact_variance(model, data):
    report = evaluate(model, data, slice_images="auto")
    assert not report.accuracy.conservative and report.pilot["seconds_an_image"] > 0


def test_a_target_is_reached_by_both_protocols_or_marked(model, data):
    for options in (dict(protocol="full", slice_images="auto"), dict(slice_images=12)):
        report = evaluate(model, data, target_ci=0.012, **options)
        assert report.accuracy.ci95 <= 0.012 and report.stopping["reached"] and report.stopping["pilot_runs"] == 64
        assert 64 < report.runs < 20_000
        first = evaluate(model, data, runs=64, **options)
        assert report.accuracy.per_run[:64].tolist() == first.accuracy.per_run.tolist(), "a prefix of the same draws"
        short = evaluate(model, data, target_ci=0.001, max_runs=100, **options)
        assert short.runs == 100 and not short.stopping["reached"]
        assert any("not reached with max_runs = 100" in note for note in short.notes)


def test_an_interrupted_pilot_reports_what_is_there(model, data, monkeypatch):
    original, left = chip_evaluator.ChipEvaluator.slice_tallies, [3]

    def slice_tallies(self, *arguments):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return original(self, *arguments)

    monkeypatch.setattr(chip_evaluator.ChipEvaluator, "slice_tallies", slice_tallies)
    report = evaluate(model, data, target_ci=0.001, chips_per_pass=5)
    assert report.interrupted and report.runs == 15 and not report.stopping["reached"]


def test_without_noise_every_tiling_is_the_quantized_network(model, data):
    report = evaluate(model, data, sigma=0.0, runs=16)
    model.eval()
    with nft.noise(model, enabled=False), torch.no_grad():
        right = (model(data[0]).argmax(dim=1) == data[1]).double().mean().item()
    assert report.accuracy.mean == right == 1
    # 148 inferences without an error: the interval is that of their number alone.
    assert report.images_evaluated == 148 and report.accuracy.interval == pytest.approx(
        (1 - 1.96**2 / 148, 1), rel=1e-4
    )
    assert "rough 95 % intervals" in str(report)


def test_one_image_a_slice_leaves_the_std_open(model, data):
    report = evaluate(model, data, slice_images=1, runs=2 * IMAGES)
    assert math.isnan(report.accuracy.std) and report.accuracy.ci95 > 0 and math.isnan(report.equivalent_full_runs)


def test_a_model_that_mixes_the_batch_runs_one_chip_a_pass():
    class Mixes(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(5, CLASSES)

        def forward(self, x):
            return self.fc(x) - x.mean(dim=0).sum() * self.fc(x).mean(dim=0)

    torch.manual_seed(1)
    report = evaluate(
        nft.convert(Mixes(), NVM), (torch.randn(20, 5), torch.randint(CLASSES, (20,))), slice_images="auto"
    )
    assert report.chips_per_pass == 1 and any("one chip per pass" in note for note in report.notes)
