"""The cost model t = overhead + S chip + S b image: fitted to timed passes, and what an evaluation is told to cost by
it.
"""

import json

import numpy as np
import pytest
import torch
from torch import nn

import nft_ext as nft
from nft_ext.cli import main
from nft_ext.montecarlo import cost_estimate
from nft_ext.montecarlo.execution import chip_evaluator
from nft_ext.montecarlo.execution.cost import Cost, fit, measure, shapes_for
from nft_ext.montecarlo.execution.pilot import Components, Pilot
from nft_ext.montecarlo.statistics.stopping import PILOT_RUNS
from nft_ext.training.checkpoint import save

TRUE = Cost(overhead=2e-3, chip=3e-3, image=4e-4)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nft.convert(
        nn.Sequential(nn.Flatten(), nn.Linear(36, 12), nn.ReLU(), nn.Linear(12, 5)), nft.NVMDevice(sigma=0.3)
    )


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(50, 1, 6, 6, generator=generator), torch.randint(0, 5, (50,), generator=generator)


# ---- the fit


def test_exact_times_give_the_costs_back():
    shapes = shapes_for(8, 32, several=True)
    found = fit(shapes, [TRUE.forward(*shape) for shape in shapes])
    assert (found.overhead, found.chip, found.image) == pytest.approx((2e-3, 3e-3, 4e-4), rel=1e-9)
    assert found.misfit < 1e-9


def test_costs_are_never_negative_and_the_misfit_says_what_is_not_explained():
    # Fewer images taking longer: least squares alone would want a negative cost of an image.
    found = fit([(1, 8), (1, 4), (4, 4)], [1.0, 2.0, 3.0])
    assert min(found.overhead, found.chip, found.image) >= 0
    assert found.misfit > 0.2


@pytest.mark.parametrize("shapes", [[(1, 64), (1, 16), (1, 1)], [(4, 1), (1, 1)], [(1, 1)]])
def test_where_passes_cannot_tell_the_terms_apart_their_sum_is_right(shapes):
    found = fit(shapes, [TRUE.forward(*shape) for shape in shapes])
    for shape in shapes:
        assert found.forward(*shape) == pytest.approx(TRUE.forward(*shape), rel=1e-9)


def test_the_pass_the_work_consists_of_comes_first_and_counts_most():
    for chips, images in ((1, 256), (8, 32), (19, 13), (3, 1)):
        assert shapes_for(chips, images, several=True)[0] == (chips, images)
    shapes = shapes_for(8, 32, several=True)
    times = [TRUE.forward(*shape) for shape in shapes]
    times[0] *= 1.2
    plain, weighted = fit(shapes, times), fit(shapes, times, [100.0, 1.0, 1.0, 1.0])
    error = [abs(cost.forward(8, 32) / times[0] - 1) for cost in (plain, weighted)]
    assert error[1] < 0.5 * error[0]


def test_without_several_chips_no_pass_of_several_is_timed():
    assert {chips for chips, _ in shapes_for(1, 256, several=False)} == {1}


def test_measuring_takes_the_median_of_passes_and_leaves_the_first_out(monkeypatch):
    clock, calls = [0.0], {}
    monkeypatch.setattr("nft_ext.montecarlo.execution.cost.time.perf_counter", lambda: clock[0])

    def run(chips, images):
        turn = calls[chips, images] = calls.get((chips, images), 0) + 1
        clock[0] += TRUE.forward(chips, images) * {1: 50.0, 3: 7.0}.get(
            turn, 1.0
        )  # the first pass, and one disturbed later

    found = measure(run, 8, 32, several=True)
    assert (found.overhead, found.chip, found.image) == pytest.approx((2e-3, 3e-3, 4e-4), rel=1e-9)


def test_no_shape_is_refused():
    with pytest.raises(ValueError, match="^shapes: must name at least one pass"):
        fit([], [])


# ---- the estimate


def test_seconds_are_passes_times_the_forwards_of_a_pass(model, data):
    found = nft.estimate_cost(model, data, runs=21, chips_per_pass=4, batch_size=20, cost=TRUE)
    assert (found.chips, found.images_a_chip, found.chips_per_pass, found.passes()) == (21, 50, 4, 6)
    by_hand = 6 * (2 * TRUE.forward(4, 20) + TRUE.forward(4, 10))  # 50 images: two batches of 20 and one of 10
    assert found.seconds - found.preparing == pytest.approx(by_hand)
    assert sum(found.parts().values()) == pytest.approx(found.seconds)


def test_slices_are_those_of_the_evaluation(model, data):
    found = nft.estimate_cost(model, data, runs=30, protocol="stratified", slice_images=7, chips_per_pass=3, cost=TRUE)
    report = nft.monte_carlo(
        model, data, runs=30, protocol="stratified", slice_images=7, chips_per_pass=3, progress=False
    )
    assert (found.images_a_chip, found.slice_images, found.chips_per_pass) == (
        report.slice_images,
        7,
        report.chips_per_pass,
    )
    assert found.seconds - found.preparing == pytest.approx(10 * TRUE.forward(3, report.slice_images))


def test_ranks_share_the_passes(model, data):
    one = nft.estimate_cost(model, data, runs=21, chips_per_pass=4, batch_size=50, cost=TRUE)
    two = type(one)(**(vars(one) | {"ranks": 2, "preparing": 0.0}))
    assert two.seconds == pytest.approx(3 * TRUE.forward(4, 50))
    assert "with 2 processes" in str(two)


def test_a_real_estimate_names_real_times_and_runs_no_evaluated_chip(model, data, monkeypatch):
    domains = set()
    original = chip_evaluator.chips

    def seen(*args, **options):
        domains.add(
            (
                options.get("domain"),
                tuple(options["draws"]) if not isinstance(options["draws"], int) else options["draws"],
            )
        )
        return original(*args, **options)

    monkeypatch.setattr(chip_evaluator, "chips", seen)
    found = nft.estimate_cost(model, data, runs=100, protocol="stratified", target_ci=0.01)
    assert found.seconds > 0 and found.cost.forward(1, 1) > 0
    # "evaluation" only for the probes of shape and of chips sharing a pass, which monte_carlo runs as well.
    assert all(len(np.atleast_1d(draws)) <= 2 for domain, draws in domains if domain == "evaluation")
    assert json.dumps(found.to_dict())


def with_pilot(monkeypatch, between):
    """A pilot on all 50 images that found this variance over chips."""
    found = Pilot(Components(mean=0.8, between=between, interaction=0.1, images=0.05), TRUE, 8, 24, 50, 10)
    monkeypatch.setattr(cost_estimate, "pilot", lambda *a: found)


@pytest.mark.parametrize("between, target", [(4e-4, 0.002), (1e-2, 0.01), (4e-4, 0.02)])
def test_chips_for_a_target_follow_from_the_variance_a_chip(model, data, monkeypatch, between, target):
    with_pilot(monkeypatch, between)
    estimate = nft.estimate_cost(model, data, target_ci=target, cost=TRUE)
    t = 1.998  # of 63 degrees of freedom
    floor = 3.84 * (2 * 0.8 - 1) / (50 * target)  # of the images, statistics/precision.py
    assert estimate.chips == pytest.approx(max(PILOT_RUNS, between * (t / target) ** 2 + floor), rel=0.01, abs=1)
    low, high = estimate.chips_range
    assert low <= estimate.chips <= high
    assert high == pytest.approx(max(PILOT_RUNS, 1.968 * between * (t / target) ** 2 + floor), rel=0.01, abs=1)


def test_a_target_out_of_reach_is_said(model, data, monkeypatch):
    with_pilot(monkeypatch, 1e-2)
    estimate = nft.estimate_cost(model, data, target_ci=1e-4, max_runs=500, cost=TRUE)
    assert estimate.chips == 500 and not estimate.reachable and "not expected to reach" in str(estimate)


def test_the_chips_expected_are_near_those_a_target_takes():
    """Over many pilots the expected number of chips is that of the stopping rule, to the uncertainty stated."""
    torch.manual_seed(0)
    net = nft.convert(
        nn.Sequential(nn.Flatten(), nn.Linear(36, 12), nn.ReLU(), nn.Linear(12, 5)), nft.NVMDevice(sigma=0.3)
    ).eval()
    inputs = torch.randn(400, 1, 6, 6, generator=torch.Generator().manual_seed(3))
    with torch.no_grad(), nft.noise(net, enabled=False):
        labels = net(inputs).argmax(dim=1)
    options = {"target_ci": 0.006, "seed": 5, "protocol": "stratified", "slice_images": 40}
    estimate = nft.estimate_cost(net, (inputs, labels), cost=TRUE, **options)
    report = nft.monte_carlo(net, (inputs, labels), progress=False, **options)
    low, high = estimate.chips_range
    # 95 % of pilots, and Stein's own pilot of 64 chips may be off by a quarter as well.
    assert 0.75 * low <= report.runs <= 1.25 * high


def test_bad_arguments_are_those_of_monte_carlo(model, data):
    with pytest.raises(ValueError, match="^runs: must be an integer in 2"):
        nft.estimate_cost(model, data, runs=1)
    with pytest.raises(ValueError, match="^slice_images: must be at most the 50 images"):
        nft.estimate_cost(model, data, protocol="stratified", slice_images=51)
    with pytest.raises(ValueError, match="^model: must hold noisy layers"):
        nft.estimate_cost(nn.Linear(3, 2), data)


def test_a_range_is_shown_only_where_a_target_decides(model, data):
    assert "95 %:" not in str(nft.estimate_cost(model, data, runs=10, cost=TRUE))
    assert "95 %:" in str(nft.estimate_cost(model, data, target_ci=0.01, cost=TRUE))


# ---- the command


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """An untrained network: only its cost matters."""
    path = tmp_path_factory.mktemp("train") / "noise.safetensors"
    meta = {"model": {"name": "vgg8", "num_classes": 10, "in_channels": 1, "width": 0.0625}, "dataset": "digits"}
    save(path, nft.models.build(**meta["model"]), meta)
    return path


def test_evaluate_estimates_before_it_begins_and_dry_run_stops_there(checkpoint, capsys):
    arguments = ["evaluate", str(checkpoint), "--sigma", "0.1", "0.2", "--runs", "3", "--limit", "40"]
    assert main([*arguments, "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert text.count("Estimate (full): 3 chips x 40 images") == 2 and "all 2 sigmas" in text and "accuracy" not in text
    assert main([*arguments, "--estimate"]) == 0
    text = capsys.readouterr().out
    assert text.index("Estimate") < text.index("accuracy")


def test_the_slices_that_were_estimated_are_those_of_the_run(checkpoint, capsys, tmp_path):
    arguments = [
        "evaluate",
        str(checkpoint),
        "--sigma",
        "0.1",
        "--protocol",
        "stratified",
        "--runs",
        "60",
        "--limit",
        "80",
        "--estimate",
    ]
    assert main([*arguments, "--out", str(tmp_path)]) == 0
    content = json.loads((tmp_path / "noise-sigma0.1.json").read_text())
    assert f"60 chips x {content['slice_images']} images" in capsys.readouterr().out
    assert content["pilot"] is None, "one pilot, before the estimate"
