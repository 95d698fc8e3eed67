"""Journals and ranks hold the sums of any metric: the same bits as one process, and only for the same functions."""

import json
import os
import socket
import subprocess
import sys

import pytest
import torch
from torch import nn

import nft_ext as nft
from support.interrupts import interrupt_after
from support.paths import importing
from support.tasks import NVM, cut, encoder, sentences


def mean_error(output, batch):
    error = 1 - output.logits.softmax(1).gather(1, batch["labels"][:, None])[:, 0]
    return error, torch.ones_like(error)


def mean_square(output, batch):
    error, one = mean_error(output, batch)
    return error.square(), one


def evaluate(data, path=None, **options):
    defaults = {"runs": 6, "chips_per_pass": 2, "progress": False, "metrics": {"error": mean_error}}
    return nft.monte_carlo(encoder(), data, resume=path, **defaults | options)


def figures(report):
    return {**report.to_dict(), "seconds": None}


@pytest.mark.parametrize("protocol", [{}, {"protocol": "stratified", "slice_images": 6}], ids=["full", "slices"])
def test_an_interrupted_evaluation_of_a_function_continues_with_the_same_bits(tmp_path, monkeypatch, protocol):
    data, path = sentences(), tmp_path / "chips.jsonl"
    whole = evaluate(data, **protocol)
    evaluate(data, path, runs=4, **protocol)
    assert len(path.read_text().splitlines()) == 5
    report = evaluate(cut(data, 7), path, **protocol)
    assert figures(report) == figures(whole)


def test_an_interrupt_keeps_the_finished_chips(tmp_path, monkeypatch):
    data, path = sentences(), tmp_path / "chips.jsonl"
    interrupt_after(monkeypatch, 2)
    assert evaluate(data, path).interrupted
    monkeypatch.undo()
    assert figures(evaluate(data, path)) == figures(evaluate(data))


@pytest.mark.parametrize(
    "options, field",
    [
        ({"metrics": {"error": mean_square}}, "metrics"),
        ({"metrics": {"other": mean_error}}, "metrics"),
        ({"metrics": ("accuracy", ("error", mean_error))}, "metrics"),
        ({"metrics": "accuracy"}, "metrics"),
        ({"forward": lambda m, b: m(b["input_ids"])}, "forward"),
    ],
)
def test_another_function_is_another_experiment(tmp_path, options, field):
    data, path = sentences(), tmp_path / "chips.jsonl"
    evaluate(data, path, runs=2)
    with pytest.raises(ValueError, match=f"^resume: must be of the same configuration; .*differs in .*{field}"):
        evaluate(data, path, **options)


def test_other_data_are_another_experiment(tmp_path):
    data, path = sentences(), tmp_path / "chips.jsonl"
    evaluate(data, path, runs=2)
    for changed in (
        data | {"labels": (data["labels"] + 1) % 4},
        data | {"attention_mask": torch.ones_like(data["attention_mask"])},
        {"labels": data["labels"], "input_ids": data["input_ids"]},
    ):
        with pytest.raises(ValueError, match="^resume: must be of the same configuration; .*differs in .*data"):
            evaluate(changed, path)


def test_metrics_of_class_labels_share_a_journal(tmp_path):
    """As in every version: their sums are all kept, so that another choice needs no chip again."""
    path = tmp_path / "chips.jsonl"
    torch.manual_seed(0)
    model, data = nft.convert(nn.Linear(5, 3), NVM), (torch.randn(12, 5), torch.arange(12) % 3)
    options = {"runs": 4, "progress": False, "resume": path}
    nft.monte_carlo(model, data, metrics="accuracy", **options)
    before = path.read_bytes()
    report = nft.monte_carlo(model, data, metrics=("ece", "nll"), **options)
    assert path.read_bytes() == before and list(report.metrics) == ["ece", "nll"]


SCRIPT = """
import json, os, sys
import torch, nft_ext as nft
from support.tasks import encoder, sentences, cut
from python_tests_of import mean_error

out, size = json.loads(sys.argv[1])
torch.set_num_threads(1)

def rank(name):
    for kind, options in (("full", {}), ("slices", dict(protocol="stratified", slice_images=6))):
        data = iter(cut(sentences(), 7))
        metrics = ("nll", ("error", mean_error), "top2")
        report = nft.monte_carlo(encoder(), data, runs=10, chips_per_pass=3, metrics=metrics, progress=False, **options)
        report.to_json(f"{out}/{kind}-{name}.json")

if size == 1:
    rank("alone")
    sys.exit()
children = []
for number in range(size):
    children.append(os.fork())
    if not children[-1]:
        os.environ["RANK"] = str(number)
        try:
            rank(number)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
sys.exit(any(os.waitpid(child, 0)[1] for child in children))
"""


def start(folder, size):
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join([str(folder), importing()["PYTHONPATH"]]))
    if size > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        environment |= {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps([str(folder), size])],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow  # two processes import torch
def test_ranks_give_the_report_of_one_process(tmp_path):
    source = "import torch\n\ndef mean_error(output, batch):\n"
    source += "    error = 1 - output.logits.softmax(1).gather(1, batch['labels'][:, None])[:, 0]\n"
    (tmp_path / "python_tests_of.py").write_text(source + "    return error, torch.ones_like(error)\n")
    start(tmp_path, 1)
    start(tmp_path, 2)
    for kind in ("full", "slices"):
        alone, *ranks = (json.loads((tmp_path / f"{kind}-{name}.json").read_text()) for name in ("alone", "0", "1"))
        for report in ranks:
            assert report["metrics"] == alone["metrics"] and report["notes"] == alone["notes"]
