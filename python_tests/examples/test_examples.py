"""The programs in examples/ run as they stand, in small, and are short."""

import importlib.util

import pytest

from support.paths import ROOT

FOLDER = ROOT / "examples"
SMALL = {
    "own_model": {"runs": 3, "epochs": 2},
    "measured_device": {"runs": 3, "epochs": 1},
    "ovf_plain_loop": {"runs": 3, "epochs": 1},
    "sweep_and_plot": {"runs": 3, "epochs": 1, "sigmas": (0.1, 0.3)},
}


def load(name):
    spec = importlib.util.spec_from_file_location(f"example_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_is_run_here():
    assert {path.stem for path in FOLDER.glob("*.py")} == set(SMALL)


@pytest.mark.parametrize("name", sorted(SMALL))
def test_it_fits_on_one_screen(name):
    assert len((FOLDER / f"{name}.py").read_text().splitlines()) < 60


def test_own_model():
    report = load("own_model").main(**SMALL["own_model"])
    assert report.runs == 3 and 0.3 < report.accuracy.mean < 1


def test_measured_device_reads_a_table_and_a_tighter_device_is_no_worse(tmp_path):
    example = load("measured_device")
    table = tmp_path / "levels.csv"
    table.write_text(example.TABLE)
    found = example.main(table, **SMALL["measured_device"])
    assert found["half the spread"].std <= found["as measured"].std + 0.01
    assert example.device(table).devices == 4


def test_ovf_plain_loop():
    assert list(load("ovf_plain_loop").main(**SMALL["ovf_plain_loop"])) == ["vanilla", "noise injection", "OVF"]


def test_sweep_and_plot(tmp_path):
    picture = tmp_path / "sweep.png"
    result = load("sweep_and_plot").main(picture, **SMALL["sweep_and_plot"])
    assert [len(curve.reports) for curve in result.curves] == [2, 2]
    assert picture.stat().st_size > 5000
