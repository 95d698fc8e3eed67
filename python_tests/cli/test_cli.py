"""The command line: what it prints and leaves, and that bad input is one line and a status."""

import json
import os
import re
import subprocess
import sys

import pytest

from nft_ext.cli import main
from support.interrupts import interrupt_after
from support.paths import ROOT


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny network trained for one epoch on digits, by the command itself."""
    path = tmp_path_factory.mktemp("train") / "noise.safetensors"
    assert main(["train", str(path), "--method", "noise", "--sigma", "0.1", "--epochs", "1", "--width", "0.0625"]) == 0
    return path


def test_info_names_what_is_in_use(capsys):
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    for word in ("nft_ext", "torch", "CPU kernels", "threads", "CUDA"):
        assert word in text


def test_info_as_json(capsys):
    assert main(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["instruction_set"] in facts["instruction_sets"]


def test_train_leaves_a_checkpoint_and_a_log(checkpoint):
    assert checkpoint.exists()
    assert checkpoint.with_suffix(".csv").read_text().startswith("epoch,")


def test_evaluate_prints_the_report_and_writes_json_csv_and_plot(checkpoint, tmp_path, capsys):
    arguments = ["evaluate", str(checkpoint), "--sigma", "0.1", "--runs", "3", "--limit", "40", "--out", str(tmp_path)]
    assert main(arguments) == 0
    assert "accuracy" in capsys.readouterr().out
    stem = tmp_path / "noise-sigma0.1"
    report = json.loads(stem.with_name(stem.name + ".json").read_text())
    assert report["runs"] == 3
    assert stem.with_name(stem.name + ".csv").exists() and stem.with_name(stem.name + ".png").exists()


def test_evaluate_sweeps_several_sigmas(checkpoint, tmp_path, capsys):
    assert (
        main(
            ["evaluate", str(checkpoint), "--sigma", "0", "0.2", "--runs", "2", "--limit", "20", "--out", str(tmp_path)]
        )
        == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("0.2") for line in lines)
    assert (tmp_path / "noise.png").exists()


@pytest.mark.parametrize("passes, points", [(5, 2), (3, 1), (4, 1)])
def test_an_interrupted_evaluate_keeps_the_sigmas_that_are_done(
    checkpoint, tmp_path, capsys, monkeypatch, passes, points
):
    """3 chips per sigma, one per pass: after 5 passes the second sigma has two chips, after 4 too few."""
    interrupt_after(monkeypatch, passes)
    arguments = ["--sigma", "0.1", "0.2", "0.3", "--runs", "3", "--limit", "20", "--chips-per-pass", "1"]
    assert main(["evaluate", str(checkpoint), *arguments, "--out", str(tmp_path)]) == 130
    reports = [json.loads(file.read_text()) for file in sorted(tmp_path.glob("*.json"))]
    assert [report["interrupted"] for report in reports] == [False, True][:points]


def test_evaluate_refuses_a_bad_sigma_before_any_work(checkpoint, tmp_path, capsys):
    assert main(["evaluate", str(checkpoint), "--sigma", "0.1", "-0.2", "--out", str(tmp_path)]) == 1
    assert "--sigma: " in (error := capsys.readouterr().err) and "-0.2" in error and not list(tmp_path.iterdir())


def test_evaluate_with_slices_and_a_target(checkpoint, capsys):
    arguments = ["evaluate", str(checkpoint), "--limit", "20", "--protocol", "stratified", "--slice-images", "5"]
    assert main([*arguments, "--target-ci", "0.001", "--max-runs", "70"]) == 0
    out = capsys.readouterr().out
    assert "70 chips x 5 of 20 images" in out and "not reached with max_runs = 70" in out


def test_evaluate_takes_a_measured_table(checkpoint, tmp_path, capsys):
    table = tmp_path / "levels.csv"
    table.write_text("level,mean,std\n0,0.0,0.05\n1,1.02,0.1\n2,1.97,0.1\n3,2.9,0.05\n")
    assert (
        main(["evaluate", str(checkpoint), "--sigma", "1", "--runs", "2", "--limit", "20", "--table", str(table)]) == 0
    )
    assert "levels" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--runs", "1"], ["runs", "1"]),
        (["--sigma", "-0.1"], ["sigma", "-0.1"]),
        (["--target-ci", "0"], ["target_ci", "> 0"]),
        (["--device-bits", "3"], ["weight_bits", "8"]),
        (["--dataset", "mnist", "--data-dir", "/no/such/folder"], ["/no/such/folder"]),
        (["--table", "/no/such/table.csv"], ["/no/such/table.csv"]),
    ],
)
def test_bad_input_is_one_line_and_status_one(checkpoint, capsys, arguments, words):
    assert main(["evaluate", str(checkpoint), *arguments]) == 1
    *notes, error = capsys.readouterr().err.strip().splitlines()
    assert error.startswith("nft-ext evaluate: ") and all(note.startswith("note: ") for note in notes)
    for word in words:
        assert word in error


@pytest.mark.parametrize("content", [None, b"", b"not a checkpoint"])
def test_missing_short_or_corrupt_checkpoint(tmp_path, capsys, content):
    path = tmp_path / "broken.safetensors"
    if content is not None:
        path.write_bytes(content)
    assert main(["evaluate", str(path)]) == 1
    assert "broken.safetensors" in capsys.readouterr().err


INFO = "import sys; from nft_ext.cli.main import main; sys.exit(main(['info']))"


def run_alone(code, **options):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=300, **options
    )


def test_an_unknown_instruction_set_is_one_line():
    found = run_alone(INFO, env=os.environ | {"NFT_EXT_CPU_ISA": "neon"})
    assert found.returncode == 1
    assert re.fullmatch(
        r"nft-ext info: NFT_EXT_CPU_ISA: must be one of the instruction sets .*; got neon", found.stderr.strip()
    )


def test_closed_standard_streams_leave_their_numbers_to_no_result():
    """A file that got the number of stderr would hold messages among its results."""
    code = f"{INFO.replace('sys.exit', 'assert 0 == ')}; sys.exit(open('README.md').fileno())"
    found = run_alone(code, preexec_fn=lambda: os.closerange(0, 3))
    assert found.returncode >= 3


def test_train_refuses_bad_options_before_work(tmp_path, capsys):
    assert main(["train", str(tmp_path / "x.safetensors"), "--method", "ovf", "--beta", "nan"]) == 1
    assert "beta" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_train_resumes_and_a_run_that_is_over_returns_at_once(checkpoint, capsys):
    log = checkpoint.with_suffix(".csv").read_text()
    arguments = ["train", str(checkpoint), "--method", "noise", "--sigma", "0.1", "--epochs", "1", "--width", "0.0625"]
    assert main([*arguments, "--resume"]) == 0
    assert checkpoint.with_suffix(".csv").read_text() == log  # the seconds in it, too
    assert main([*arguments, "--resume", "--lr", "0.1"]) == 1
    assert "recipe.lr: 0.001 there, 0.1 here" in capsys.readouterr().err
    assert main([*arguments, "--resume", "--no-state"]) == 1
    assert "--resume: must not be combined with --no-state" in capsys.readouterr().err


def test_trains_by_the_papers_recipe_unless_told_otherwise(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(
        "nft_ext.training.fit",
        lambda *args, **options: seen.append(options) or (_ for _ in ()).throw(KeyboardInterrupt),
    )
    arguments = ["train", str(tmp_path / "x.safetensors"), "--model", "resnet18", "--width", "0.0625"]
    assert main(arguments) == 130
    assert (
        main(
            [
                *arguments,
                "--optimizer",
                "sgd",
                "--lr",
                "0.3",
                "--precision",
                "bfloat16",
                "--accumulate",
                "4",
                "--channels-last",
            ]
        )
        == 130
    )
    paper, changed = (options["recipe"] for options in seen)
    assert (paper.epochs, paper.batch_size, paper.optimizer, paper.lr, paper.schedule) == (
        200,
        128,
        "adam",
        1e-2,
        "cosine",
    )
    assert (changed.optimizer, changed.lr, changed.precision, changed.accumulate, changed.channels_last) == (
        "sgd",
        0.3,
        "bfloat16",
        4,
        True,
    )
    assert seen[0]["state"] == tmp_path / "x.state" and seen[0]["resume"] is False


BAD_VALUES = {  # option -> values that are refused, in words that name it
    "train": {
        "--sigma": ("-0.1", "nan", "x"),
        "--epochs": ("0", "1.5", "x"),
        "--batch-size": ("0", "2.0", "True"),
        "--lr": ("0", "nan", "-1"),
        "--momentum": ("1", "x"),
        "--weight-decay": ("-1",),
        "--accumulate": ("0",),
        "--seed": ("-1", "0.5"),
        "--validation": ("0", "1", "10"),
        "--save-every": ("-1", "nan"),
        "--width": ("0", "inf"),
        "--weight-bits": ("0", "7"),
        "--device-bits": ("3",),
        "--device": ("nowhere",),
        "--table": ("", "no.csv"),
        "--optimizer": ("lion",),
        "--epoch": ("1",),  # no abbreviations
        "--beta": ("0.1",),  # noise injection has none
        "--feedbacks": ("3",),
        "-o": ("beta", "logit_scale=True", "logit_scale=true", "logit_scal=2", "sigma=0.1"),
    },
    "evaluate": {
        "--sigma": ("-0.1", "nan"),
        "--runs": ("1", "2.5"),
        "--seed": ("-1",),
        "--slice-images": ("all", "0"),
        "--target-ci": ("1", "nan"),
        "--max-runs": ("0",),
        "--limit": ("0",),
        "--batch-size": ("12.5", "0"),
        "--chips-per-pass": ("True", "0"),
        "--device": ("nowhere",),
        "--run": ("3",),
    },
    "reproduce": {
        "--seed": ("3",),  # not --seeds
        "--seeds": ("0",),
        "--jobs": ("0",),
        "--threads": ("0",),
        "--shard": ("2/1", "1"),
        "--width": ("0",),
        "--epochs": ("0",),
        "--sigma": ("-1",),
    },
}
REQUIRED = {"train": ("out.safetensors", "--method", "noise", "--sigma", "0.1"), "reproduce": ("figure3", "--dry-run")}


@pytest.mark.parametrize(
    ("command", "option"), [(command, option) for command, options in BAD_VALUES.items() for option in options]
)
def test_a_bad_value_of_an_option_is_refused_by_name(command, option, checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for value in BAD_VALUES[command][option]:
        required = REQUIRED.get(command, (str(checkpoint), "--sigma", "0.1"))
        argument = option if option == "-o" else f"{option}={value}"
        try:
            status = main([command, *required, argument, *([value] if option == "-o" else [])])
        except SystemExit as error:  # argparse
            status = error.code
        lines = capsys.readouterr().err.splitlines()
        said = lines[-1] if lines else ""
        assert status in (1, 2) and sum("error" in line or line.startswith("nft-ext") for line in lines) == 1, (
            value,
            lines,
        )
        name = "logit_scal" if "logit" in value else option.lstrip("-").partition("-")[0]
        assert name in said, (value, said)
    assert not list(tmp_path.iterdir())
