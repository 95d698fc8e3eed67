"""`sweep`: several networks and devices over sigma on common chips; differences, files, resuming, and the command."""

import csv
import json

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

import nft_ext as nft
from nft_ext.cli import main
from nft_ext.montecarlo import monte_carlo
from nft_ext.montecarlo.execution import chip_evaluator
from nft_ext.training.checkpoint import save
from support.interrupts import interrupt_after

SIGMAS = [0.1, 0.3]
RUNS = 8


def network(scale=1.0):
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(9, 20), nn.ReLU(), nn.Linear(20, 4))
    with torch.no_grad():
        model[2].bias += 0.2 * scale * torch.randn(4)
    return model


@pytest.fixture
def models():
    device = nft.NVMDevice(sigma=0.2)
    return {"a": nft.convert(network(1.0), device), "b": nft.convert(network(1.2), device)}


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(4)
    return torch.randn(200, 9, generator=generator), torch.randint(4, (200,), generator=generator)


def run(models, data, **options):
    return nft.sweep(models, data, **({"sigmas": SIGMAS, "runs": RUNS, "seed": 3, "progress": False} | options))


def test_every_point_is_the_evaluation_at_its_sigma(models, data):
    found = run(models, data)
    assert list(found.reports) == ["a", "b"] and not found.interrupted
    for name, reports in found.reports.items():
        assert [report.sigma for report in reports] == SIGMAS
        for report in reports:
            alone = monte_carlo(models[name], data, runs=RUNS, seed=3, sigma=report.sigma, progress=False)
            assert report.accuracy.per_run.tolist() == alone.accuracy.per_run.tolist()


def test_a_point_without_noise_is_the_evaluation_without_noise(models, data):
    (point,) = run(models["a"], data, sigmas=[0.0]).curve("network")
    alone = monte_carlo(models["a"], data, runs=RUNS, seed=3, sigma=0.0, progress=False)
    assert point.sigma == 0.0 and point.accuracy.per_run.tolist() == alone.accuracy.per_run.tolist()


def test_a_loader_is_read_once_for_the_whole_sweep(models, data):
    reads = []

    class Counted(torch.utils.data.TensorDataset):
        def __getitem__(self, i):
            reads.append(i)
            return super().__getitem__(i)

    run(models, torch.utils.data.DataLoader(Counted(*data)), runs=2)
    assert len(reads) == len(data[0])


def test_one_network_needs_no_name(models, data):
    found = run(models["a"], data)
    assert list(found.reports) == ["network"] and len(found.curve("network")) == 2


def test_devices_are_put_under_plain_and_converted_networks(models, data):
    devices = {"gauss": nft.NVMDevice(), "fefet": nft.NVMDevice.preset("fefet2")}
    partly = nft.convert(network(), nft.NVMDevice(), exclude=["2"])
    found = run({"plain": network(), "partly": partly}, data, devices=devices)
    assert list(found.reports) == ["plain, gauss", "plain, fefet", "partly, gauss", "partly, fefet"]
    names = [reports[0].nvm[0]["device"]["name"] for reports in found.reports.values()]
    assert names == ["gaussian", "fefet2"] * 2
    assert found.curve("plain, fefet")[0].nvm[0]["layers"] == ["0", "2"]
    assert found.curve("partly, fefet")[0].nvm[0]["layers"] == ["0"]
    assert partly[0].nvm.name == "gaussian", "the network handed over stays as it was"
    assert "several devices" in str(found)


def test_common_chips_make_differences_narrow(models, data):
    found = run(models, data, runs=40)
    for sigma, difference in found.paired("b", "a").items():
        x, y = (next(r for r in found.curve(name) if r.sigma == sigma).accuracy for name in ("b", "a"))
        expected = stats.ttest_rel(x.per_run, y.per_run)
        assert difference.mean == pytest.approx(x.mean - y.mean, abs=1e-12) and difference.n == 40
        assert difference.p_t == pytest.approx(expected.pvalue, rel=1e-6)
        assert difference.ci95 == pytest.approx(np.ptp(expected.confidence_interval()) / 2, rel=1e-6)
        assert difference.ci95 < 0.6 * np.hypot(x.ci95, y.ci95)


def test_slices_are_settled_once_and_paired_on_the_same_images(models, data):
    found = run(models, data, protocol="stratified", runs=40)
    assert len({report.slice_images for reports in found.reports.values() for report in reports}) == 1
    assert found.paired("b", "a")[0.1].n == 40


def test_table_csv_json_and_plot(models, data, tmp_path):
    found = run(models, data)
    found.to_csv(tmp_path / "s.csv")
    found.to_json(tmp_path / "s.json")
    found.plot(tmp_path / "s.png")
    rows = list(csv.DictReader((tmp_path / "s.csv").open()))
    assert [(row["model"], float(row["sigma"])) for row in rows] == [("a", 0.1), ("a", 0.3), ("b", 0.1), ("b", 0.3)]
    assert float(rows[3]["accuracy_mean"]) == found.curve("b")[1].accuracy.mean
    content = json.loads((tmp_path / "s.json").read_text())
    assert content["curves"][1]["reports"][0] == found.curve("b")[0].to_dict()
    difference = content["differences"][1]
    assert (difference["curve"], difference["baseline"], difference["sigma"]) == ("b", "a", 0.3)
    assert difference["mean"] == found.paired("b", "a")[0.3].mean
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")
    text = found.differences_table()
    assert "not the methods that trained them" in text and len(text.splitlines()) == 4
    assert len(str(found).splitlines()) == 6 and "may be unlike any seen" in str(found)


def figures(found):
    return [{**report.to_dict(), "seconds": None} for reports in found.reports.values() for report in reports]


def test_an_interrupted_sweep_keeps_its_points_and_goes_on_from_its_folder(models, data, tmp_path, monkeypatch):
    whole = run(models, data)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 2 * RUNS + 3)  # the third point of four holds three chips
        part = run(models, data, chips_per_pass=1, resume=tmp_path / "folder")
    assert part.interrupted and [len(reports) for reports in part.reports.values()] == [2, 1]
    assert part.curve("a")[1].runs == 3 and part.paired("b", "a").keys() == {0.1}
    with monkeypatch.context() as patch:
        interrupt_after(patch, 5 + RUNS)
        again = run(models, data, chips_per_pass=1, resume=tmp_path / "folder")
    assert not again.interrupted
    assert [f["metrics"]["accuracy"] for f in figures(again)] == [f["metrics"]["accuracy"] for f in figures(whole)]
    assert sorted(file.name for file in (tmp_path / "folder").iterdir()) == [
        f"{name}-sigma{sigma}.jsonl" for name in "ab" for sigma in SIGMAS
    ]


@pytest.mark.parametrize(
    "passes, points, last_interrupted", [(RUNS + 2, 2, True), (RUNS, 1, False), (RUNS + 1, 1, False)]
)
def test_a_point_with_fewer_than_two_chips_is_left_out(models, data, monkeypatch, passes, points, last_interrupted):
    interrupt_after(monkeypatch, passes)
    found = run(models["a"], data, sigmas=[0.0, 0.1, 0.3], chips_per_pass=1)
    reports = found.curve("network")
    assert found.interrupted and len(reports) == points and reports[-1].interrupted is last_interrupted


def test_an_interrupt_before_any_point_is_passed_on(models, data, monkeypatch):
    interrupt_after(monkeypatch, 1)
    with pytest.raises(KeyboardInterrupt):
        run(models, data, chips_per_pass=1)


@pytest.mark.parametrize(
    "change, kind, words",
    [
        (dict(sigmas=[]), ValueError, "sigmas: must hold at least one value"),
        (dict(sigmas=[0.1, 0.1]), ValueError, "sigmas: .* each once"),
        (dict(sigmas=[-0.1]), ValueError, "sigmas: .*got -0.1"),
        (dict(models={}), ValueError, "models: must name at least one"),
        (dict(models={"x": 3}), TypeError, "models: .*got 'x': int"),
        (dict(models=network()), ValueError, "model: must hold noisy layers"),
        (dict(devices={"d": 0.1}), TypeError, "devices: .*got 'd': float"),
        (
            dict(devices={"m": nft.NVMDevice(), "s": nft.NVMDevice(relative_to="spacing")}),
            ValueError,
            "devices: must have the same unit",
        ),
        (dict(sigma=0.1), ValueError, "sigma: must be given as sigmas"),
        (dict(protocol="some"), ValueError, "protocol: "),
    ],
)
def test_bad_input_is_refused_before_any_work(models, data, change, kind, words, monkeypatch):
    monkeypatch.setattr(chip_evaluator.ChipEvaluator, "tallies", lambda *_: pytest.fail("work began"))
    change = dict(change)
    with pytest.raises(kind, match=f"^{words}"):
        run(change.pop("models", models), data, **change)


def test_a_file_is_no_folder_and_unknown_names_are_refused(models, data, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="^resume: must be a folder"):
        run(models, data, resume=tmp_path / "file")
    with pytest.raises(ValueError, match="^models: must have names that differ in letters"):
        run({"a+": models["a"], "a-": models["b"], "a*": models["b"]}, data, resume=tmp_path / "folder")
    with pytest.raises(ValueError, match="^name: must be one of a, b; got c"):
        run(models, data, runs=2).paired("a", "c")


# ---- the commands


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    for seed in range(2):
        torch.manual_seed(seed)
        meta = {"model": {"name": "vgg8", "num_classes": 10, "in_channels": 1, "width": 0.0625}, "dataset": "digits"}
        save(folder / f"net{seed}.safetensors", nft.models.build(**meta["model"]), meta)
    return [str(folder / f"net{seed}.safetensors") for seed in range(2)]


def test_the_sweep_command_prints_differences_and_writes_what_it_found(checkpoints, tmp_path, capsys):
    options = ["--sigma", "0.1", "--runs", "2", "--limit", "10", "--chips-per-pass", "1"]
    command = [
        "sweep",
        *checkpoints,
        *options,
        "--out",
        str(tmp_path / "out"),
        "--resume",
        str(tmp_path / "journals"),
        "--presets",
        "rram1",
        "rram4",
    ]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "net1, rram4" in printed and "accuracy minus that of net0, rram1" in printed
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"sweep.json", "sweep.csv", "sweep.png"}
    assert len(list((tmp_path / "journals").iterdir())) == 4
    assert main(command) == 0
    assert capsys.readouterr().out == printed, "everything came from the journals"


def test_evaluate_resumes_and_says_what_differs(checkpoints, tmp_path, capsys):
    command = ["evaluate", checkpoints[0], "--runs", "3", "--limit", "20", "--resume", str(tmp_path / "j")]
    assert main([*command, "--sigma", "0.1"]) == 0
    assert len((tmp_path / "j").read_text().splitlines()) == 4
    capsys.readouterr()
    assert main([*command, "--sigma", "0.2"]) == 1
    assert "sigma: 0.1 in the file, 0.2 now" in capsys.readouterr().err
    assert main([*command, "--sigma", "0.1", "0.2"]) == 1
    assert "--resume: needs a single --sigma" in capsys.readouterr().err
