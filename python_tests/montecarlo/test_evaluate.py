"""`monte_carlo` on real chips: equal to a loop over programmed networks, however it is batched."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import nft_ext as nft
from nft_ext.montecarlo import MonteCarloReport, monte_carlo
from nft_ext.montecarlo.execution import chip_evaluator
from nft_ext.nn import contexts
from support.interrupts import interrupt_after

IMAGES, CLASSES, RUNS = 37, 6, 7
NVM = nft.NVMDevice(sigma=0.3)


class SmallNet(nn.Module):
    """Convolution, batch norm, dropout, linear: what differs between train and eval mode is there."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.dropout = nn.Dropout(0.5)
        self.fc = nn.Linear(8 * 16, CLASSES)

    def forward(self, x):
        x = torch.relu(self.norm(self.conv(x)))
        x = nn.functional.max_pool2d(x, 2).flatten(1)
        return self.fc(self.dropout(x))


@pytest.fixture
def plain():
    torch.manual_seed(5)
    model = SmallNet()
    model(torch.randn(64, 2, 8, 8))  # moves the batch statistics off their start
    return model


@pytest.fixture
def model(plain):
    return nft.convert(plain, NVM)


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(6)
    inputs = torch.randn(IMAGES, 2, 8, 8, generator=generator)
    return inputs, torch.randint(CLASSES, (IMAGES,), generator=generator)


def evaluate(model, data, **options):
    return monte_carlo(model, data, **({"runs": RUNS, "seed": 11, "progress": False} | options))


def by_hand(model, data):
    """Accuracy, EKL and calibration from whole networks with programmed weights, one network per chip."""
    inputs, labels = data
    accuracy, ekl, all_p = [], [], []
    for draw in range(RUNS):
        chip = nft.program(model, seed=11, draw=draw).eval()
        with torch.no_grad():
            p = chip(inputs).double().softmax(dim=1)
        right = p.argmax(dim=1) == labels
        accuracy.append(right.double().mean().item())
        ekl.append(-p[right, labels[right]].log().mean().item())
        all_p.append(p)
    confidence, predicted = torch.cat(all_p).max(dim=1)
    right = (predicted == labels.repeat(RUNS)).double()
    ece = 0.0
    for b in range(15):
        inside = (confidence > b / 15) & (confidence <= (b + 1) / 15)
        if inside.any():
            gap = right[inside].mean() - confidence[inside].mean()
            ece += gap.abs().item() * inside.double().mean().item()
    return accuracy, ekl, ece


def test_run_r_is_the_network_programmed_with_draw_r(model, data):
    accuracy, ekl, ece = by_hand(model, data)
    report = evaluate(model, data)
    assert report.accuracy.per_run.tolist() == accuracy
    np.testing.assert_allclose(report.ekl.per_run, ekl, rtol=1e-5)
    assert report.ece == pytest.approx(ece, rel=1e-4)
    assert len(set(accuracy)) > 1, "all chips alike would prove nothing"
    assert (report.runs, report.images, report.images_evaluated) == (RUNS, IMAGES, RUNS * IMAGES)


@pytest.mark.parametrize(
    "options",
    [
        dict(chips_per_pass=3),
        dict(batch_size=1, chips_per_pass=7),
        dict(batch_size=10),
        dict(chips_per_pass=1, batch_size=37),
    ],
)
def test_batching_changes_nothing_but_rounding(model, data, options):
    one_by_one = evaluate(model, data, chips_per_pass=1, batch_size=5, metrics=("accuracy", "ekl", "nll"))
    report = evaluate(model, data, metrics=("accuracy", "ekl", "nll"), **options)
    assert report.accuracy.per_run.tolist() == one_by_one.accuracy.per_run.tolist()
    np.testing.assert_allclose(report.ekl.per_run, one_by_one.ekl.per_run, rtol=1e-5)
    np.testing.assert_allclose(report.nll.per_run, one_by_one.nll.per_run, rtol=1e-5)
    assert report.ece == pytest.approx(one_by_one.ece, rel=1e-4)


def test_the_thread_count_changes_nothing_but_rounding(model, data, threads):
    threads(1)
    one = evaluate(model, data)
    threads(2)
    two = evaluate(model, data)
    assert one.accuracy.per_run.tolist() == two.accuracy.per_run.tolist()
    np.testing.assert_allclose(one.ekl.per_run, two.ekl.per_run, rtol=1e-5)


class WeightSpy(nn.Module):
    """Returns its programmed weight: the identity goes in, so row j of the output is column j."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(5, 4, bias=False)

    def forward(self, x):
        return self.fc(x)


@pytest.mark.parametrize("chips_per_pass, batch_size", [(1, 5), (3, 5), (4, 2), (7, 1)])
def test_chips_are_bit_identical_however_they_share_passes(monkeypatch, chips_per_pass, batch_size):
    torch.manual_seed(0)
    model = nft.convert(WeightSpy(), NVM)
    seen = {}
    original = chip_evaluator.ChipEvaluator._pass

    def spy(self, batch, size, chips):
        output = original(self, batch, size, chips)
        draws = [int(draw) for draw in self.model.fc._key[:, 1]]
        for draw, rows in zip(draws, output.unflatten(0, (chips, size)), strict=True):
            for column, row in zip(batch[0].argmax(dim=1).tolist(), rows):
                seen[draw, column] = row.clone()
        return output

    monkeypatch.setattr(chip_evaluator.ChipEvaluator, "_pass", spy)
    evaluate(model, (torch.eye(5), torch.arange(5) % 4), chips_per_pass=chips_per_pass, batch_size=batch_size)
    for draw in range(RUNS):
        weight = nft.program(model, seed=11, draw=draw).fc.weight
        assert torch.equal(torch.stack([seen[draw, c] for c in range(5)], dim=1), weight)


def test_the_last_pass_is_padded_and_the_padding_dropped(model, data, monkeypatch):
    passes = []
    original = chip_evaluator.ChipEvaluator.tallies
    monkeypatch.setattr(
        chip_evaluator.ChipEvaluator,
        "tallies",
        lambda self, draws, done: passes.append(draws) or original(self, draws, done),
    )
    report = evaluate(model, data, chips_per_pass=3)
    assert passes == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert report.accuracy.per_run.shape == (7,) and report.chips_per_pass == 3


def test_sigma_overrides_the_layers_and_is_reported(plain, model, data):
    report = evaluate(model, data, sigma=0.05)
    assert report.sigma == 0.05
    converted_at_it = nft.convert(plain, NVM.replace(sigma=0.05))
    assert report.accuracy.per_run.tolist() == by_hand(converted_at_it, data)[0]
    assert evaluate(model, data).sigma == 0.3


def test_a_sigma_the_report_could_not_name_is_refused(model, data):
    with nft.noise(model, sigma=0.2):
        with pytest.raises(ValueError, match="^sigma: must be given to monte_carlo itself"):
            evaluate(model, data)
        assert evaluate(model, data, sigma=0.1).sigma == 0.1


def test_noise_that_is_switched_off_is_noted(model, data):
    with nft.noise(model, enabled=False):
        report = evaluate(model, data)
    assert report.accuracy.std == 0
    assert any("switched off" in note and note.endswith("conv, fc") for note in report.notes)


def test_the_report_names_the_conditions(model, data):
    report = evaluate(model, data)
    device = report.nvm[0]["device"]
    assert (device["weight_bits"], device["device_bits"], device["relative_to"]) == (8, 2, "max")
    assert report.nvm[0]["layers"] == ["conv", "fc"]
    assert report.seed == 11 and {"nft_ext", "torch", "python"} <= set(report.versions)


def test_a_written_report_reads_back(model, data, tmp_path):
    report = evaluate(model, data)
    report.to_json(tmp_path / "report.json")
    again = MonteCarloReport.from_json(tmp_path / "report.json")
    assert str(again) == str(report)


def test_without_noise_every_chip_is_the_quantized_network(model, data):
    report = evaluate(model, data, sigma=0.0, chips_per_pass=2)
    model.eval()
    with nft.noise(model, enabled=False), torch.no_grad():
        right = (model(data[0]).argmax(dim=1) == data[1]).double().mean().item()
    assert report.accuracy.per_run.tolist() == [right] * RUNS and report.accuracy.std == 0


def test_the_model_is_left_as_it_was_and_trains_on(model, data):
    model.train()
    model.norm.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    evaluate(model, data, sigma=0.1)
    assert [m.training for m in (model, model.conv, model.norm, model.dropout)] == [True, True, False, True]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    nn.functional.cross_entropy(model(data[0]), data[1]).backward()
    assert model.conv.weight.grad.isfinite().all()


def test_torch_s_generator_is_left_alone(model, data):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    evaluate(model, data)
    assert torch.equal(torch.rand(1), expected)


class TimeFirst(nn.Module):
    """Takes and mixes rows across the batch: several chips in one pass would see one another."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(5, CLASSES)

    def forward(self, x):
        return self.fc(x) - x.mean(dim=0).sum() * self.fc(x).mean(dim=0)


def test_a_model_that_mixes_the_batch_runs_one_chip_a_pass_and_says_so():
    torch.manual_seed(1)
    model = nft.convert(TimeFirst(), NVM)
    data = torch.randn(20, 5), torch.randint(CLASSES, (20,))
    report = evaluate(model, data, chips_per_pass=4)
    assert report.chips_per_pass == 1
    assert any(note.startswith("one chip per pass: two chips in one pass differ") for note in report.notes)
    assert "one chip per pass" in str(report)


def test_layers_left_out_of_the_conversion_are_named(plain, data):
    report = evaluate(nft.convert(plain, NVM, exclude=["fc"]), data)
    assert [(group["name"], group["reason"]) for group in report.coverage["digital"]] == [("fc.weight", "excluded")]


def test_layers_whose_noise_is_switched_off_are_named(plain, data):
    noisy = nft.convert(plain, NVM)
    nft.noisy_layers(noisy)["fc"].set_enabled(False)
    assert "layers whose noise is switched off: fc" in evaluate(noisy, data).notes


def test_all_zero_weights_and_one_image(plain):
    nn.init.zeros_(plain.fc.weight)
    nn.init.zeros_(plain.fc.bias)
    report = evaluate(nft.convert(plain, NVM), (torch.randn(1, 2, 8, 8), torch.tensor([0])))
    assert report.ekl.per_run == pytest.approx([math.log(CLASSES)] * RUNS)  # uniform, class 0 first


def test_outputs_that_are_probabilities_get_a_note_in_the_report(plain, data):
    ends = nft.convert(nn.Sequential(plain, nn.Softmax(dim=1)), NVM)
    with pytest.warns(UserWarning, match="are probabilities .* not logits: EKL, NLL and calibration error are wrong"):
        report = evaluate(ends, data)
    assert "not logits: EKL, NLL and calibration error are wrong" in " ".join(str(report).split())
    with pytest.warns(UserWarning, match="not logits"):  # the temperature does not hide them
        assert evaluate(nft.metrics.tempered(ends, 0.5), data).notes[0] == report.notes[0]


def test_double_inputs_are_cast_to_the_model_s_dtype(model, data):
    report = evaluate(model, (data[0].double(), data[1]))
    assert report.accuracy.per_run.tolist() == evaluate(model, data).accuracy.per_run.tolist()


def test_bfloat16_finds_the_mean_within_float32_s_interval(model, data):
    exact = evaluate(model, data, runs=60)
    rough = evaluate(model, data, runs=60, precision="bfloat16")
    assert rough.precision == "bfloat16"
    assert abs(rough.accuracy.mean - exact.accuracy.mean) <= exact.accuracy.ci95
    assert rough.nvm == exact.nvm


def test_an_interrupt_reports_the_finished_runs(model, data, monkeypatch):
    whole = evaluate(model, data, chips_per_pass=2)
    interrupt_after(monkeypatch, 2)
    model.train()
    report = evaluate(model, data, chips_per_pass=2)
    assert report.interrupted and report.runs == 4 and not whole.interrupted
    assert report.accuracy.per_run.tolist() == whole.accuracy.per_run[:4].tolist()
    assert "interrupted after 4 of 7 chips" in report.notes
    assert model.training


def test_an_interrupt_before_two_runs_is_passed_on(model, data, monkeypatch):
    interrupt_after(monkeypatch, 1)
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, data, chips_per_pass=1)


@pytest.mark.parametrize("protocol", ["full", "stratified"])
def test_layers_that_are_programmed_once_a_pass_give_the_same_report(model, data, monkeypatch, protocol):
    """As CUDA devices have it: what a chip's batches share is programmed once, for the chips of a pass together."""
    options = dict(batch_size=5, chips_per_pass=3) | (
        dict(protocol=protocol, slice_images=12) if protocol == "stratified" else {}
    )
    expected = evaluate(model, data, **options)
    programmed, held = [], contexts.program_layers
    original = chip_evaluator.ChipEvaluator.__init__

    def on_cuda(self, *arguments):
        original(self, *arguments)
        self.programmed = True

    monkeypatch.setattr(chip_evaluator.ChipEvaluator, "__init__", on_cuda)
    monkeypatch.setattr(
        contexts, "program_layers", lambda layers, *more: programmed.append(len(list(layers))) or held(layers, *more)
    )
    found = evaluate(model, data, **options)
    assert found.accuracy.per_run.tolist() == expected.accuracy.per_run.tolist()
    passes = [count for count in programmed if count]
    # Three passes of the runs; a few of the probe and of the pilot. A pass of whole sets has 8 batches.
    assert set(passes) == {2} and 3 <= len(passes) <= 3 + 40, "both layers, once per pass"
    if protocol == "full":
        np.testing.assert_allclose(found.ekl.per_run, expected.ekl.per_run, rtol=1e-5)
        assert len(passes) < 3 * 8, "not once per batch"
