"""evaluate and sweep take from a checkpoint what the options leave open: its data set, its device, its sigma. Nothing
is guessed.
"""

import json

import pytest
import torch

import nft_ext as nft
from nft_ext.cli import main
from nft_ext.training import save

TABLE = "level,mean,std\n0,0.0,0.05\n1,1.02,0.1\n2,1.97,0.1\n3,2.9,0.05\n"
FEW = ["--runs", "2", "--limit", "10"]


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "measured.csv"
    path.write_text(TABLE)
    return path


@pytest.fixture
def write(tmp_path):
    """write(name, device) -> a checkpoint that says so."""

    def written(name="net", device=None, dataset="digits"):
        model = {"name": "vgg8", "num_classes": 10, "in_channels": 1, "width": 0.0625}
        torch.manual_seed(0)
        meta = {"model": model, "device": device and device.describe(), "dataset": dataset}
        save(
            tmp_path / f"{name}.safetensors",
            nft.models.build(**model),
            {key: value for key, value in meta.items() if value is not None},
        )
        return str(tmp_path / f"{name}.safetensors")

    return written


@pytest.fixture
def evaluated(tmp_path):
    """The reports of an evaluation, each with its device."""

    def reports(*arguments):
        folder = tmp_path / "out"
        assert main(["evaluate", *arguments, *FEW, "--out", str(folder)]) == 0
        return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]

    return reports


def test_evaluated_on_images_normalised_as_in_the_training(tmp_path, evaluated, monkeypatch):
    out, seen, real = tmp_path / "net.safetensors", [], nft.data.load
    monkeypatch.setattr(nft.data, "load", lambda *given: seen.append(given[2]) or real(*given))
    smallest = ["--width", "0.0625", "--epochs", "1", "--init", "published", "--normalisation", "published"]
    assert main(["train", str(out), "--method", "noise", "--sigma", "0.1", *smallest]) == 0
    evaluated(str(out))
    assert seen == ["published"] * 2
    model, meta = nft.training.load_model(out)
    assert model.init == meta["model"]["init"] == "published"


def test_checkpoints_of_two_normalisations_share_no_sweep(tmp_path, capsys):
    for name, entry in (("usual", {}), ("other", {"normalisation": "published"})):
        model = {"name": "vgg8", "num_classes": 10, "in_channels": 1, "width": 0.0625}
        save(tmp_path / f"{name}.safetensors", nft.models.build(**model), {"model": model, "dataset": "digits"} | entry)
    assert main(["sweep", *map(str, sorted(tmp_path.glob("*.safetensors"))), "--sigma", "0.1", *FEW]) == 1
    assert "must all be trained on images of one normalisation" in capsys.readouterr().err


def device_in(report):
    (entry,) = report["nvm"]
    return entry["device"]


@pytest.mark.parametrize(
    "device",
    [
        nft.NVMDevice(weight_bits=4, device_bits=4, sigma=0.2),
        nft.NVMDevice.preset("rram4", 0.3),
        nft.NVMDevice(censor=1.0, mapping="differential"),
        nft.NVMDevice(level_mean=(0, 1.1), level_std=(0.1, 0.2), device_bits=1, sigma=1.0),
    ],
    ids=str,
)
def test_evaluated_on_the_device_and_at_the_sigma_trained_for(write, evaluated, device):
    (report,) = evaluated(write(device=device))
    assert device_in(report) == json.loads(json.dumps(device.describe()))


def test_options_change_what_they_name_and_no_more(write, evaluated):
    trained_for = nft.NVMDevice.preset("rram4", 0.3, weight_bits=4)
    (report,) = evaluated(write(device=trained_for), "--mapping", "differential", "--sigma", "0.1")
    assert device_in(report) == json.loads(
        json.dumps(trained_for.replace(mapping="differential", sigma=0.1).describe())
    )


def test_a_preset_or_a_table_is_another_kind_of_device(write, evaluated, table):
    path = write(device=nft.NVMDevice(weight_bits=4, censor=1.0, sigma=0.3))
    (report,) = evaluated(path, "--preset", "fefet2")
    assert device_in(report) == json.loads(json.dumps(nft.NVMDevice.preset("fefet2", 0.3, weight_bits=4).describe()))


def test_a_table_is_as_measured_unless_told_otherwise(write, evaluated, table):
    (report,) = evaluated(write(device=nft.NVMDevice(weight_bits=4)), "--table", str(table))
    assert device_in(report) == json.loads(json.dumps(nft.NVMDevice.from_table(table, weight_bits=4).describe()))


@pytest.mark.parametrize(
    "trained_for, options, sigma",
    [
        (nft.NVMDevice(level_mean=(0, 1, 2, 3), level_std=(0.1,) * 4, sigma=0.7), [], 0.7),
        (nft.NVMDevice(level_mean=(0, 1, 2, 3), level_std=(0.1,) * 4, sigma=0.7), ["--preset", "rram4"], 0.1),
        (nft.NVMDevice(sigma=0.3), ["--relative-to", "spacing"], 0.1),
        (nft.NVMDevice(sigma=0.3), ["--relative-to", "max"], 0.3),
        (nft.NVMDevice(sigma=0.3), ["--preset", "rram4"], 0.3),
        (nft.NVMDevice(sigma=0.3, relative_to="spacing"), ["--preset", "rram4"], 0.1),
    ],
    ids=str,
)
def test_a_sigma_in_another_unit_is_not_taken_over(write, evaluated, trained_for, options, sigma):
    (report,) = evaluated(write(device=trained_for), *options)
    assert device_in(report)["sigma"] == sigma


def test_a_table_in_microsiemens_from_the_shell(write, evaluated, tmp_path, capsys):
    table = tmp_path / "conductances.csv"
    table.write_text("level,mean,std\n0,10,1.5\n1,22,1\n2,32,2\n3,40,1\n")
    options = ["--unit", "microsiemens", "--g-min", "10", "--g-max", "40"]
    (report,) = evaluated(write(), "--table", str(table), *options)
    assert device_in(report)["level_mean"] == pytest.approx([0, 1.2, 2.2, 3])
    assert main(["evaluate", write(), *FEW, *options]) == 1
    assert "--unit, --g-min, --g-max: need --table" in capsys.readouterr().err


def test_without_noise_in_training_the_default_device(write, evaluated):
    (report,) = evaluated(write(device=None))
    assert device_in(report) == nft.NVMDevice(sigma=0.1).describe()


def test_stuck_clipped_and_truncated_devices_from_the_shell(write, evaluated):
    (report,) = evaluated(write(), "--stuck", "0.01", "0.02", "--clip", "0", "1", "--truncate", "2")
    found = device_in(report)
    assert (found["stuck"], found["clip"], found["truncate"], found["sampling"]) == (
        [0.01, 0.02],
        [0, 1],
        2,
        "per_device",
    )


def test_scales_and_arrays_from_the_shell(write, evaluated):
    (report,) = evaluated(write(), "--scale", "tile", "--array-rows", "64", "--array-columns", "32")
    found = device_in(report)
    assert (found["scale"], found["array_rows"], found["array_columns"]) == ("tile", 64, 32)


def test_trained_at_a_measured_table_s_own_deviations(monkeypatch, tmp_path, table):
    seen = []
    monkeypatch.setattr(
        "nft_ext.training.fit",
        lambda *args, **options: seen.append((args, options)) or (_ for _ in ()).throw(KeyboardInterrupt),
    )
    train = ["train", str(tmp_path / "x.safetensors"), "--width", "0.0625"]
    assert main([*train, "--table", str(table)]) == main(train) == 130
    assert [args[1].sigma for args, _ in seen] == [1.0, 0.1] and seen[0][1]["nvm"].level_std == (0.05, 0.1, 0.1, 0.05)


def test_another_data_set_is_taken_as_asked_and_said(write, capsys):
    path = write(dataset="mnist")
    assert main(["evaluate", path, *FEW, "--dataset", "digits"]) == 0
    assert capsys.readouterr().err.startswith("note: net was trained on mnist and is evaluated on digits\n")


def test_the_data_set_trained_on_is_looked_for(write, capsys):
    assert main(["evaluate", write(dataset="mnist"), *FEW, "--data-dir", "/no/such/folder"]) == 1
    assert "/no/such/folder" in capsys.readouterr().err


@pytest.mark.parametrize("dataset", [None, "my own"])
def test_a_data_set_that_nobody_names_is_not_guessed(write, capsys, dataset):
    assert main(["evaluate", write(dataset=dataset), *FEW]) == 1
    assert "--dataset: must be given unless the checkpoints name one" in capsys.readouterr().err


def test_relative_to_says_nothing_of_measured_deviations(write, capsys, table):
    for path, options in ((write(), ["--table", str(table)]), (write("own", nft.NVMDevice.from_table(table)), [])):
        assert main(["evaluate", path, *FEW, "--relative-to", "own", *options]) == 1
        assert "--relative-to: must be left out for a measured device" in capsys.readouterr().err


def test_a_sweep_is_over_one_device_that_all_were_trained_for(write, capsys):
    plain, noisy = write("plain"), write("noisy", nft.NVMDevice(weight_bits=4, sigma=0.2))
    also, other = write("also", nft.NVMDevice(weight_bits=4, sigma=0.1)), write("other", nft.NVMDevice.preset("rram4"))
    sweep = ["--sigma", "0.1", *FEW, "--chips-per-pass", "1"]
    assert main(["sweep", plain, noisy, also, *sweep]) == 0
    assert "M = 4" in capsys.readouterr().out
    assert main(["sweep", noisy, other, *sweep]) == 1
    assert "checkpoint: must all be trained for the same device" in capsys.readouterr().err
    assert main(["sweep", noisy, other, *sweep, "--preset", "rram1"]) == 0


def test_several_presets_stand_in_place_of_one(write, capsys):
    assert main(["sweep", write(), "--sigma", "0.1", *FEW, "--presets", "rram1", "rram4", "--preset", "fefet2"]) == 1
    assert "--presets: must be left out with --preset or --table; got ['rram1', 'rram4']" in capsys.readouterr().err


def test_a_sweep_is_over_one_data_set(write, capsys):
    paths = [write("a"), write("b", dataset="mnist")]
    assert main(["sweep", *paths, "--sigma", "0.1", *FEW]) == 1
    assert "--dataset: must be given" in capsys.readouterr().err
